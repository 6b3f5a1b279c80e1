// Package owner tells whose a process, and so its network namespace, is: a pod's, a
// container's or a unit's.
//
// The path of a process's cgroup says so, in a way that each manager of cgroups has
// for itself. For a pod it has the uid only; the kubelet's folders of logs have
// namespace and name.
package owner

// An Owner is whose a process is.
type Owner struct {
	// Name is pod/<namespace>/<pod>, docker/<12 hex digits>, podman/<12 hex digits>,
	// lxc/<name>, nspawn/<name> or unit/<unit>, all printable ASCII; empty if nobody is
	// found. It is not unique: an owner can have several network namespaces.
	Name string
	// Namespace and Pod are those of a pod, else empty.
	Namespace, Pod string
}

// Owner returns the owner that /proc/<pid>/cgroup names. It is nobody for a pod that
// has no name, even where the pod runs in a container: that would be the owner of
// all pods of a cluster in a container. Only for a pod can it fail.
func (p *Pods) Owner(cgroup []byte) (Owner, error) { return p.Of(Claimed(cgroup)) }

// Of returns the owner of a claim, as Owner does.
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
