package link

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/felix/dataplane/internal/nlsock"
	"github.com/muslin-net/muslin/felix/desired"
)

// Pod is a pod's interface as it is to be wired.
type Pod struct {
	Netns      string // path of the pod's network namespace
	Interface  string // in the pod
	Host       string // the other end, in our namespace
	MTU        int
	MAC        desired.MAC // of the pod's side; zero lets the kernel choose
	Addresses  []netip.Addr
	Forwarding bool           // the pod may forward packets
	Queues     int            // of the pair; 0 is one
	Routes     []netip.Prefix // that the pod has instead of the default route of their family
}

// Wire makes the pair and sets the pod's side up: addresses with full mask, a route to the gateway and by it everywhere
// (spec §4.1). It is idempotent. If it fails, a pair that it made is removed again.
//
// It is most of what a pod's start costs a node, so it enters the namespace once, and has the kernel do all that needs no
// answer by one datagram.
func (d *Driver) Wire(ctx context.Context, p Pod) error {
	ns, err := openNetns(p.Netns)
	if err != nil {
		return err
	}
	defer func() { _ = ns.Close() }()
	return d.within(ns, func() error {
		in, err := nlsock.DialBrief(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer func() { _ = in.Close() }()
		made, err := d.pair(ctx, p, in, ns)
		if err != nil {
			return err
		}
		if err = setUp(ctx, p, in); err != nil && made {
			return errors.Join(err, remove(in, p.Interface))
		}
		if made {
			d.fresh.Store(p.Host, struct{}{})
		}
		return err
	})
}

// pair makes the veth pair unless it is there. It is made inside the pod, so that the host never sees an interface
// with a name of the pod's.
func (d *Driver) pair(ctx context.Context, p Pod, in *nlsock.Conn, ns netns.NsHandle) (made bool, err error) {
	create := pairMessage(p, int(d.host))
	err = in.SendOne(ctx, create)
	if errors.Is(err, unix.EEXIST) {
		var there bool
		if there, err = d.clear(p, ns); there || err != nil {
			return false, err
		}
		err = in.SendOne(ctx, create)
	}
	if err != nil {
		return false, fmt.Errorf("create veth pair %s and %s: %w", p.Interface, p.Host, err)
	}
	return true, nil
}

// clear finds out what bears the names of a pair: that very pair, which is there then; or a leftover of a pod that is no
// more, which it removes; or something that is not ours.
func (d *Driver) clear(p Pod, ns netns.NsHandle) (there bool, err error) {
	in, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return false, fmt.Errorf("network namespace %s of the pod: %w", p.Netns, err)
	}
	defer in.Close()
	inside, err := in.LinkByName(p.Interface)
	if ignoreMissing(err) != nil {
		return false, fmt.Errorf("look for %s in the pod: %w", p.Interface, err)
	}
	outside, errOut := d.handle.LinkByName(p.Host)
	if ignoreMissing(errOut) != nil {
		return false, fmt.Errorf("look for %s: %w", p.Host, errOut)
	}
	switch {
	case err == nil && errOut == nil && peers(inside, outside):
		return true, nil
	case err == nil:
		return false, fmt.Errorf("the pod already has an interface %s that is not the other end of %s; remove it, or use another name", p.Interface, p.Host)
	case errOut == nil:
		if err := ignoreMissing(d.handle.LinkDel(outside)); err != nil {
			return false, fmt.Errorf("remove %s, of a pod that is no more: %w", p.Host, err)
		}
	}
	return false, nil
}

// peers tells whether two links, each in its namespace, are the ends of one veth pair.
func peers(a, b netlink.Link) bool {
	return a.Type() == "veth" && b.Type() == "veth" && a.Attrs().ParentIndex == b.Attrs().Index && b.Attrs().ParentIndex == a.Attrs().Index
}

// setUp configures the pod's side, within the pod's namespace.
func setUp(ctx context.Context, p Pod, in *nlsock.Conn) error {
	if err := setSysctls(p); err != nil {
		return err
	}
	answer, err := in.Get(ctx, lookMessage(p.Interface))
	if err != nil {
		return fmt.Errorf("interface %s in the pod: %w", p.Interface, err)
	}
	steps := setUpMessages(p, indexOf(answer))
	messages := make([]nlsock.Message, len(steps))
	for i, s := range steps {
		messages[i] = s.message
	}
	results, err := in.Send(ctx, messages)
	if err != nil {
		return fmt.Errorf("set %s up in the pod: %w", p.Interface, err)
	}
	for i, err := range results {
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("%s in the pod: %w", steps[i].what, err)
		}
	}
	return nil
}

// setSysctls sets parameters within the pod's namespace.
func setSysctls(p Pod) error {
	for _, s := range podSysctls(p) {
		now, err := readSysctl(s.Path)
		if err == nil && now != s.Value {
			err = writeSysctl(s.Path, s.Value)
		}
		if err != nil {
			return fmt.Errorf("sysctl %s=%s in the pod: %w", s.Path, s.Value, err)
		}
	}
	return nil
}

// podSysctls are those of a pod's namespace. Duplicate detection is off: the address is the pod's own by IPAM, and
// waiting for it would delay the pod by a second.
func podSysctls(p Pod) []desired.Sysctl {
	forwarding := "0"
	if p.Forwarding {
		forwarding = "1"
	}
	set := []desired.Sysctl{{Path: "net/ipv4/ip_forward", Value: forwarding}}
	if slices.ContainsFunc(p.Addresses, netip.Addr.Is6) {
		set = append(set,
			desired.Sysctl{Path: "net/ipv6/conf/all/disable_ipv6", Value: "0"},
			desired.Sysctl{Path: "net/ipv6/conf/default/disable_ipv6", Value: "0"},
			desired.Sysctl{Path: "net/ipv6/conf/lo/disable_ipv6", Value: "0"},
			desired.Sysctl{Path: "net/ipv6/conf/" + p.Interface + "/disable_ipv6", Value: "0"},
			desired.Sysctl{Path: "net/ipv6/conf/" + p.Interface + "/accept_dad", Value: "0"},
			desired.Sysctl{Path: "net/ipv6/conf/all/forwarding", Value: forwarding})
	}
	return set
}

// Unwire removes the pair by its host side; one that is not there is no error. The kernel takes its time over that, but does
// several at once; so each call has a socket of its own, on which nobody else waits.
func (d *Driver) Unwire(host string) error {
	d.fresh.Delete(host)
	out, err := nlsock.DialBrief(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer func() { _ = out.Close() }()
	return remove(out, host)
}

// remove removes a link of the socket's namespace, and with it the other end of its pair.
func remove(at *nlsock.Conn, name string) error {
	if err := ignoreMissing(at.SendOne(context.Background(), removeMessage(name))); err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	return nil
}

// Exists tells whether the host side of a pair is there.
func (d *Driver) Exists(host string) (bool, error) {
	_, err := d.handle.LinkByName(host)
	if ignoreMissing(err) != nil {
		return false, fmt.Errorf("look for %s: %w", host, err)
	}
	return err == nil, nil
}

// Reach tells why a pod's namespace cannot be entered; nil if it can.
func Reach(path string) error {
	ns, err := openNetns(path)
	if err != nil {
		return err
	}
	return ns.Close()
}

// openNetns opens a pod's namespace. What a namespace was mounted on stays behind as a file when that is gone.
func openNetns(path string) (netns.NsHandle, error) {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return ns, fmt.Errorf("network namespace %s of the pod: %w", path, err)
	}
	if kind, err := unix.IoctlRetInt(int(ns), unix.NS_GET_NSTYPE); err != nil || kind != unix.CLONE_NEWNET {
		_ = ns.Close()
		return netns.None(), fmt.Errorf("network namespace %s of the pod: what is there is no network namespace", path)
	}
	return ns, nil
}

// openPod opens a pod's namespace and a handle on it.
func openPod(path string) (netns.NsHandle, *netlink.Handle, error) {
	ns, err := openNetns(path)
	if err != nil {
		return ns, nil, err
	}
	in, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		_ = ns.Close()
		return ns, nil, fmt.Errorf("network namespace %s of the pod: %w", path, err)
	}
	return ns, in, nil
}

// within runs f inside a namespace, on a thread that is the caller's alone meanwhile. A thread that finds no way back is
// never given back: the runtime ends it with the goroutine. (All but the process's first one, which would stay there for
// good; felix's main keeps that one out of this.)
func (d *Driver) within(ns netns.NsHandle, f func() error) error {
	runtime.LockOSThread()
	if err := netns.Set(ns); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter the pod's network namespace: %w", err)
	}
	err := f()
	if back := netns.Set(d.host); back != nil {
		return errors.Join(err, fmt.Errorf("leave the pod's network namespace: %w", back))
	}
	runtime.UnlockOSThread()
	return err
}
