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
	// maxEntries bounds the size of one listing. A node runs some hundreds of pods.
	maxEntries = 1 << 16
	// listEvery is shorter than the time between scrapes, so that each finds new pods:
	// the kubelet creates a pod's folder before the pod. Pods of a cluster in a container
	// are never found; without this limit the folder would be listed for each of them.
	listEvery = 5 * time.Second
)

// Pods knows the namespaces and names of the pods that the kubelet runs on a host, by
// uid, from the names of their log folders: <namespace>_<name>_<uid>
// (BuildPodLogsDirectory of pkg/kubelet/kuberuntime). Folders remain for a while after
// their pods have ended. Its methods may be called concurrently.
type Pods struct {
	dir string

	mu     sync.Mutex
	known  map[string]pod // by uid
	listed time.Time
	failed error // error of the last listing
}

// pod is a pod. It is zero if two entries have the same uid.
type pod struct{ namespace, name string }

// NewPods returns the pods of dir, which is /var/log/pods of a host. It does not read
// dir.
func NewPods(dir string) *Pods { return &Pods{dir: dir} }

// Find returns the namespace and the name of a pod. ok is false if the uid has no folder,
// or several, which leaves the name unknown, or if dir does not exist. For an unknown
// uid, Find lists dir, unless it did so less than 5 seconds ago. If dir cannot be listed,
// Find returns an error, and still finds the pods of the previous listing.
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

// list lists the folder again.
func (p *Pods) list() {
	known, err := list(p.dir, maxEntries)
	if err == nil {
		p.known = known
	} else {
		err = fmt.Errorf("folders of the pods' logs: %w", err)
	}
	p.failed = err
}

// list reads up to most entries of a folder, in no particular order.
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

// parseEntry returns the parts of a folder's name. uid is "" if the folder is not a
// pod's.
func parseEntry(entry string) (uid string, found pod) {
	namespace, rest, _ := strings.Cut(entry, "_")
	name, uid, _ := strings.Cut(rest, "_")
	if !isUID(uid) || !legible(namespace) || !legible(name) {
		return "", pod{}
	}
	return uid, pod{namespace, name}
}
