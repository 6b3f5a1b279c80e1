package owner

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync"
	"time"
)

const (
	// maxEntries bounds what one listing takes in. A node runs some hundreds of pods.
	maxEntries = 1 << 16
	// listEvery is shorter than scrapes are apart, so each finds new pods: the kubelet
	// makes a pod's folder before the pod. Those of a cluster in a container are never
	// found, and would else have the folder listed for each of them.
	listEvery = 5 * time.Second
)

// Pods knows the namespaces and names of the pods that the kubelet runs on a host, by
// uid, from the names of the folders of their logs: <namespace>_<name>_<uid>
// (BuildPodLogsDirectory of pkg/kubelet/kuberuntime). Folders outlive their pods for a
// while. Its methods may be called by any goroutine.
type Pods struct {
	dir string

	mu     sync.Mutex
	known  map[string]pod // by uid
	listed time.Time
	failed error // of the last listing
}

// pod is the zero pod where two entries have one uid.
type pod struct{ namespace, name string }

// NewPods returns the pods of dir, /var/log/pods of a host, which it does not read yet.
func NewPods(dir string) *Pods { return &Pods{dir: dir} }

// Find returns the namespace and the name of a pod. ok is false for a uid that has no
// folder, or more than one, as nobody can tell which is the pod's. Where there is no
// dir, no uid has. The dir is listed for a uid that is not known, but not within 5
// seconds of the last time. Find fails where it cannot be listed, and goes on to know
// the pods of the last time.
func (p *Pods) Find(uid string) (namespace, name string, ok bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.known[uid] == (pod{}) && (p.listed.IsZero() || time.Since(p.listed) >= listEvery) {
		p.list()
		p.listed = time.Now()
	}
	if found := p.known[uid]; found != (pod{}) {
		return found.namespace, found.name, true, nil
	}
	return "", "", false, p.failed
}

// list reads the folder again.
func (p *Pods) list() {
	known, err := list(p.dir, maxEntries)
	if err == nil {
		p.known = known
	} else {
		err = fmt.Errorf("folders of the pods' logs: %w", err)
	}
	p.failed = err
}

// list reads up to most entries of a folder, in no order.
func list(path string, most int) (map[string]pod, error) {
	dir, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	defer dir.Close()
	pods := make(map[string]pod)
	for most > 0 {
		entries, err := dir.Readdirnames(min(most, 1024))
		most -= len(entries)
		for _, entry := range entries {
			uid, found := parseEntry(entry)
			if _, twice := pods[uid]; twice {
				found = pod{}
			}
			if uid != "" {
				pods[uid] = found
			}
		}
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, err
		}
	}
	return pods, nil
}

// parseEntry returns the parts of a folder's name, uid "" where it is not of a pod.
func parseEntry(entry string) (uid string, found pod) {
	namespace, rest, _ := strings.Cut(entry, "_")
	name, uid, _ := strings.Cut(rest, "_")
	if !isUID(uid) || !legible(namespace) || !legible(name) {
		return "", pod{}
	}
	return uid, pod{namespace, name}
}
