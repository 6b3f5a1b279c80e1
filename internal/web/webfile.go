package web

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/common/config"
	toolkit "github.com/prometheus/exporter-toolkit/web"
	"go.yaml.in/yaml/v2"
)

// webFile is the file of --web.config.file, and the certificates and keys that it names.
// They are kept in memory and read again when they have changed, so that no file has to
// be opened for a request: a host without file descriptors can still answer.
//
// A file that cannot be read or is not valid changes nothing, and neither does one that
// asks for less protection than before, because writing a file in place truncates it
// first. Reducing protection takes a restart.
type webFile struct {
	path   string
	logger *slog.Logger

	mu      sync.Mutex
	current *protection
	// The result of the last look: the state of the files, whether that state is
	// certainly what was read, and the error, if any.
	files   []string
	states  []fileState
	settled bool
	looked  time.Time
	trouble string
}

// protection is the protection that the file asks for.
type protection struct {
	toolkit.Config
	tls *tls.Config // nil without TLS
}

// fileState is compared to detect whether a file was changed or replaced.
type fileState struct {
	err              string
	device, inode    uint64
	size             int64
	modified, change syscall.Timespec
}

// lookAgain is how old the last change of a file must be when the file is read for every
// later change to be visible in its state. It is also the time after which a file that
// could not be read is read again.
const lookAgain = time.Second

// openWebFile reads the file, which must be valid.
func openWebFile(path string, logger *slog.Logger) (*webFile, error) {
	f := &webFile{path: path, logger: logger}
	f.look(time.Now())
	if f.current == nil {
		return nil, fmt.Errorf("%s", f.trouble)
	}
	return f, nil
}

// get returns the protection to enforce now.
func (f *webFile) get() *protection {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	if !slices.Equal(f.states, statesOf(f.files)) || !f.settled && now.Sub(f.looked).Abs() >= lookAgain {
		f.look(now)
	}
	return f.current
}

// look reads the file and the files that it names.
func (f *webFile) look(now time.Time) {
	next, err := readProtection(f.path)
	f.looked = now
	f.files = []string{f.path}
	for _, p := range []*protection{f.current, next} {
		if p != nil {
			f.files = append(f.files, p.files()...)
		}
	}
	// These may be the states of a file that was written after it was read, but then its
	// change is a recent one.
	f.states = statesOf(f.files)
	f.settled = err == nil && !slices.ContainsFunc(f.states, func(s fileState) bool {
		return s.err != "" || now.Sub(time.Unix(s.change.Unix())) < lookAgain
	})
	if err == nil && f.current != nil {
		err = f.current.weakened(next)
	}
	if err == nil {
		f.current = next
	}
	f.say(err)
}

// say logs an error when it appears or changes, and when it is over.
func (f *webFile) say(err error) {
	trouble := ""
	if err != nil {
		trouble = err.Error()
	}
	if trouble == f.trouble {
		return
	}
	f.trouble = trouble
	switch {
	case f.current == nil:
	case err != nil:
		f.logger.Warn("Keeping the previous web configuration", "file", f.path, "err", err)
	default:
		f.logger.Info("Reloaded the web configuration", "file", f.path)
	}
}

func statesOf(files []string) []fileState {
	states := make([]fileState, len(files))
	for i, name := range files {
		// This does not open the file.
		info, err := os.Stat(name)
		if err != nil {
			states[i].err = err.Error()
			continue
		}
		if s, ok := info.Sys().(*syscall.Stat_t); ok {
			states[i] = fileState{device: uint64(s.Dev), inode: s.Ino, size: s.Size, modified: s.Mtim, change: s.Ctim} //nolint:unconvert // its type differs between architectures
		}
	}
	return states
}

// readProtection reads a web configuration file as the toolkit does, and the files that
// it names.
func readProtection(path string) (*protection, error) {
	// Only Validate knows which values the parts may have.
	if err := toolkit.Validate(path); err != nil {
		return nil, err
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	p := &protection{Config: toolkit.Config{TLSConfig: toolkit.TLSConfig{MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS13}}}
	if err := yaml.UnmarshalStrict(content, &p.Config); err != nil {
		return nil, err
	}
	p.TLSConfig.SetDirectory(filepath.Dir(path))
	if !p.TLSConfig.IsEnabled() {
		return p, nil
	}
	p.tls, err = readTLS(p.TLSConfig)
	return p, err
}

// readTLS reads the files of a configuration, so that a handshake opens none.
func readTLS(c toolkit.TLSConfig) (*tls.Config, error) {
	cert, key, ca := c.TLSCert, string(c.TLSKey), c.ClientCAsText
	for _, f := range []struct {
		path string
		text *string
	}{{c.TLSCertPath, &cert}, {c.TLSKeyPath, &key}, {c.ClientCAs, &ca}} {
		if f.path == "" {
			continue
		}
		b, err := os.ReadFile(f.path)
		if err != nil {
			return nil, err
		}
		*f.text = string(b)
	}
	if hasCA := c.ClientCAs != "" || c.ClientCAsText != ""; hasCA && !x509.NewCertPool().AppendCertsFromPEM([]byte(ca)) {
		return nil, fmt.Errorf("client_ca_file %s holds no certificate", c.ClientCAs)
	}
	c.TLSCert, c.TLSKey, c.ClientCAsText = cert, config.Secret(key), ca
	c.TLSCertPath, c.TLSKeyPath, c.ClientCAs = "", "", ""
	t, err := toolkit.ConfigToTLSConfig(&c)
	if err != nil {
		return nil, err
	}
	parsed, err := t.GetCertificate(nil)
	if err != nil {
		return nil, err
	}
	t.Certificates, t.GetCertificate = []tls.Certificate{*parsed}, nil
	t.NextProtos = []string{"http/1.1"}
	// Each connection is to be verified with the current authorities.
	t.SessionTicketsDisabled = true
	return t, nil
}

// files returns the files that are checked for changes.
func (p *protection) files() []string {
	return slices.DeleteFunc([]string{p.TLSConfig.TLSCertPath, p.TLSConfig.TLSKeyPath, p.TLSConfig.ClientCAs},
		func(name string) bool { return name == "" })
}

// weakened returns an error that names the protection that a new configuration removes,
// if any.
func (p *protection) weakened(next *protection) error {
	less := ""
	switch {
	case len(p.Users) > 0 && len(next.Users) == 0:
		less = "no longer has basic_auth_users"
	case p.tls != nil && next.tls == nil:
		less = "no longer has TLS"
	case p.tls == nil && next.tls != nil:
		less = "has TLS now"
	case p.tls == nil:
	case next.tls.ClientAuth < p.tls.ClientAuth:
		less = "asks less of the client's certificate (client_auth_type)"
	case p.tls.ClientCAs != nil && next.tls.ClientCAs == nil:
		less = "no longer has a certificate authority for clients (client_ca_file)"
	case len(p.TLSConfig.ClientAllowedSans) > 0 && len(next.TLSConfig.ClientAllowedSans) == 0:
		less = "no longer has client_allowed_sans"
	case next.tls.MinVersion < p.tls.MinVersion:
		less = "has a lower min_version"
	}
	if less == "" {
		return nil
	}
	return fmt.Errorf("it %s, which requires a restart", less)
}
