// Package owner determines the owner of a process, and so of its network namespace: a
// pod, a container or a unit.
//
// The path of a process's cgroup names the owner, in the format of its cgroup manager.
// For a pod it has only the uid; the names of the kubelet's log folders have the
// namespace and name.
package owner

// An Owner is the owner of a process.
type Owner struct {
	// Name is pod/<namespace>/<pod>, docker/<12 hex digits>, podman/<12 hex digits>,
	// lxc/<name>, nspawn/<name> or unit/<unit>, all printable ASCII; empty if there is no
	// known owner. It is not unique: an owner can have several network namespaces.
	Name string
	// Namespace and Pod are those of a pod, empty for other owners.
	Namespace, Pod string
}

// Owner returns the owner that /proc/<pid>/cgroup names. For a pod without a known name
// it returns the zero Owner, even if the pod runs in a container, which would be the
// owner of all pods of a cluster in a container. Only for a pod can it return an error.
func (p *Pods) Owner(cgroup []byte) (Owner, error) { return p.Of(Claimed(cgroup)) }

// Of returns the owner for a claim, like Owner.
func (p *Pods) Of(c Claim) (Owner, error) {
	switch c.Kind {
	case "":
		return Owner{}, nil
	case Pod:
		namespace, name, ok, err := p.Find(c.ID)
		if !ok {
			return Owner{}, err
		}
		return Owner{Name: string(Pod) + "/" + namespace + "/" + name, Namespace: namespace, Pod: name}, nil
	default:
		return Owner{Name: string(c.Kind) + "/" + c.ID}, nil
	}
}
