package web

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/mdlayher/vsock"
	toolkit "github.com/prometheus/exporter-toolkit/web"
)

// ListenAndServe serves on the addresses that the flags name, or on the sockets that
// systemd passes, until the server is shut down (http.ErrServerClosed) or one of them
// fails. TLS and passwords are configured by the flags' file.
//
// It does what the toolkit's function of that name does, except for the file, which the
// toolkit opens at every request and whose content it uses whatever it is.
func ListenAndServe(server *http.Server, flags *toolkit.FlagConfig, logger *slog.Logger) error {
	listeners, err := listen(flags, logger)
	if err != nil {
		return err
	}
	defer func() {
		for _, l := range listeners {
			_ = l.Close()
		}
	}()
	secure := false
	if path := *flags.WebConfigFile; path != "" {
		file, err := openWebFile(path, logger)
		if err != nil {
			return fmt.Errorf("--web.config.file=%s: %w", path, err)
		}
		server.Handler = newGuard(file, server.Handler, logger)
		if file.get().tls != nil {
			secure = true
			server.TLSConfig = &tls.Config{ //nolint:gosec // the minimum version is that of the file
				GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return file.get().tls, nil },
			}
		}
	}
	var serving sync.WaitGroup
	ended := make(chan error, len(listeners))
	for _, l := range listeners {
		logger.Info("Listening on", "address", l.Addr().String())
		if secure {
			logger.Info("TLS is enabled.", "http2", false, "address", l.Addr().String())
			serving.Go(func() { ended <- server.ServeTLS(listener{l}, "", "") })
		} else {
			logger.Info("TLS is disabled.", "http2", false, "address", l.Addr().String())
			serving.Go(func() { ended <- server.Serve(listener{l}) })
		}
	}
	err = <-ended
	if !errors.Is(err, http.ErrServerClosed) {
		_ = server.Close() // this also ends the others
	}
	serving.Wait()
	return err
}

// listen opens the addresses or sockets to listen on.
func listen(flags *toolkit.FlagConfig, logger *slog.Logger) (listeners []net.Listener, err error) {
	if *flags.WebSystemdSocket {
		logger.Info("Listening on systemd activated listeners instead of port listeners.")
		listeners, err := activation.Listeners()
		if err != nil {
			return nil, err
		}
		// The list has nil for files that are not listeners.
		listeners = slices.DeleteFunc(listeners, func(l net.Listener) bool { return l == nil })
		if len(listeners) == 0 {
			return nil, errors.New("no socket activation file descriptors found")
		}
		return listeners, nil
	}
	for _, address := range *flags.WebListenAddresses {
		l, err := listenOn(address)
		if err != nil {
			for _, l := range listeners {
				_ = l.Close()
			}
			return nil, err
		}
		listeners = append(listeners, l)
	}
	return listeners, nil
}

// listenOn listens on a TCP address, or on a port of vsock://:1234.
func listenOn(address string) (net.Listener, error) {
	if !strings.HasPrefix(address, "vsock://") {
		return net.Listen("tcp", address) //nolint:noctx // nothing ends it
	}
	u, err := url.Parse(address)
	if err != nil {
		return nil, err
	}
	port, err := strconv.ParseUint(u.Port(), 10, 32)
	if err != nil {
		return nil, err
	}
	return vsock.Listen(uint32(port), nil)
}
