// Package link looks after the links between the host and its pods: it makes and removes the veth pairs that the CNI
// calls ask for (pod.go), and keeps the host sides and the host's own sysctls as felix wants them. It owns the attributes
// and sysctls of the links that it was told of, and nothing else: it never removes a link unasked.
//
// A link that is not there is no error: the runtime may have removed the pod's namespace, and with it the pair, before
// it says so.
package link

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"strconv"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/felix/dataplane"
	"github.com/muslin-net/muslin/felix/dataplane/internal/nlsock"
	"github.com/muslin-net/muslin/felix/desired"
)

// Driver is the driver. Its methods may be called from several goroutines.
type Driver struct {
	handle   *netlink.Handle
	events   *nlsock.Conn   // open from the start, so that nothing is missed before Watch
	host     netns.NsHandle // our namespace, where the host sides of pairs go
	rpFilter int            // of the node, as found at start

	fresh sync.Map // names of links that were made just now, and have neither queues nor addresses

	mu      sync.Mutex // guards the following
	links   map[string]desired.WorkloadLink
	done    map[string]int      // links that are as wanted, with their index
	halves  map[string]struct{} // links of which only one end may have the wanted MTU
	growing map[string]struct{} // links that wait for Grow
	shaped  map[string]bool     // whether a link has queues of ours; not there: unknown
	// addressed is whether a link has addresses of ours; not there: unknown.
	addressed map[string]bool
	sysctls   map[string]desired.Sysctl
	written   bool // all of sysctls are as wanted
	failures  dataplane.Failures
	list      listing // of the present Apply
	writes    uint64
}

// New opens the driver on the caller's network namespace.
func New() (*Driver, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("link driver: %w", err)
	}
	events, err := nlsock.Dial(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK)
	if err != nil {
		h.Close()
		return nil, fmt.Errorf("link driver: %w", err)
	}
	host, err := netns.Get()
	if err != nil {
		h.Close()
		return nil, errors.Join(fmt.Errorf("link driver: %w", err), events.Close())
	}
	d := &Driver{
		handle: h, events: events, host: host,
		links: map[string]desired.WorkloadLink{}, done: map[string]int{}, halves: map[string]struct{}{}, growing: map[string]struct{}{}, shaped: map[string]bool{},
		addressed: map[string]bool{}, sysctls: map[string]desired.Sysctl{},
	}
	if text, err := readSysctl("net/ipv4/conf/default/rp_filter"); err == nil {
		d.rpFilter, _ = strconv.Atoi(text)
	}
	return d, nil
}

// Close releases the driver's sockets; links stay.
func (d *Driver) Close() error {
	d.handle.Close()
	return errors.Join(d.events.Close(), d.host.Close())
}

// Writes counts the changes made to the kernel by Apply since New.
func (d *Driver) Writes() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.writes
}

// Update takes changes of the desired links and of the host's sysctls, by path.
func (d *Driver) Update(links desired.Delta[string, desired.WorkloadLink], sysctls desired.Delta[string, desired.Sysctl]) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for name := range links.Removed {
		delete(d.links, name)
		delete(d.done, name)
		delete(d.halves, name)
		delete(d.shaped, name)
		delete(d.addressed, name)
	}
	for name, l := range links.Set {
		d.links[name] = l
		delete(d.done, name)
	}
	for path := range sysctls.Removed {
		delete(d.sysctls, path)
	}
	for path, s := range sysctls.Set {
		d.sysctls[path], d.written = s, false
	}
}

// Resync makes the next Apply look at every link and sysctl again.
func (d *Driver) Resync() {
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.done)
	clear(d.shaped)
	clear(d.addressed)
	d.written = false
}

// Apply makes the kernel agree, but for links whose MTU is to grow: see Grow. What failed stays due and is in the error, one
// ObjectError for each object.
func (d *Driver) Apply(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failures, d.list = dataplane.Failures{}, newListing(d.handle)
	if !d.written {
		d.written = true
		for path, s := range d.sysctls {
			if err := d.sysctl(s, false); err != nil {
				d.written = false
				d.failures.Add(dataplane.KindSysctl, path, err)
			}
		}
	}
	for name, l := range d.links {
		if err := ctx.Err(); err != nil {
			return errors.Join(d.failures.Join(), err)
		}
		if _, ok := d.done[name]; ok {
			continue
		}
		index, err := d.configure(l)
		switch {
		case err != nil:
			d.failures.Add(dataplane.KindLink, name, err)
		case index != 0:
			d.done[name] = index
		}
	}
	return d.failures.Join()
}

// configure makes one link as wanted and returns its index, 0 if it is not there.
func (d *Driver) configure(want desired.WorkloadLink) (index int, err error) {
	l, err := d.handle.LinkByName(want.Name)
	if err != nil {
		return 0, ignoreMissing(err)
	}
	at := l.Attrs()
	if mac := net.HardwareAddr(desired.HostMAC[:]); !bytes.Equal(at.HardwareAddr, mac) {
		if err := d.write(d.handle.LinkSetHardwareAddr(l, mac)); err != nil {
			return 0, fmt.Errorf("set address %s: %w", mac, err)
		}
	}
	switch _, half := d.halves[want.Name]; {
	case want.MTU == 0 || at.MTU == want.MTU && !half:
	case at.MTU > want.MTU:
		if err := d.setMTU(l, want); err != nil {
			return 0, err
		}
	default:
		d.growing[want.Name] = struct{}{}
	}
	_, fresh := d.fresh.LoadAndDelete(want.Name)
	if fresh {
		d.shaped[want.Name], d.addressed[want.Name] = false, false
	}
	if err := d.shape(l, want); err != nil {
		return 0, err
	}
	if err := d.gateways(l, want); err != nil {
		return 0, err
	}
	for _, s := range want.Sysctls(d.rpFilter) {
		if err := d.sysctl(s, fresh); err != nil {
			return 0, fmt.Errorf("sysctl %s=%s: %w", s.Path, s.Value, err)
		}
	}
	if at.Flags&net.FlagUp == 0 {
		if err := d.write(d.handle.LinkSetUp(l)); err != nil {
			return 0, fmt.Errorf("set up: %w", err)
		}
	}
	return at.Index, nil
}

// sysctl writes a parameter that differs. Most of a fresh link do, so that they are not read first.
func (d *Driver) sysctl(s desired.Sysctl, fresh bool) error {
	var now string
	var err error
	if !fresh {
		now, err = readSysctl(s.Path)
	}
	if err == nil && now != s.Value {
		err = d.write(writeSysctl(s.Path, s.Value))
	}
	if err != nil && s.BestEffort {
		return nil
	}
	return err
}

func (d *Driver) write(err error) error {
	d.writes++
	return err
}

// Programmed tells whether a link is there and as wanted.
func (d *Driver) Programmed(name string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, ok := d.done[name]
	return ok
}

// Why tells why the last attempt to make a link as wanted failed; nil if it did not, or the link was not there.
func (d *Driver) Why(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.failures.Of(dataplane.KindLink, name)
}

// Watch follows the kernel's notifications until ctx ends, and calls wake whenever Apply has something to do: a link
// that is wanted came, or changed behind our back. It may run once.
func (d *Driver) Watch(ctx context.Context, wake dataplane.Wake) error {
	return d.events.Listen(ctx, func(e nlsock.Event) {
		if len(e.Body) < unix.SizeofIfInfomsg || e.Body[0] != unix.AF_UNSPEC {
			return // AF_BRIDGE: a bridge lost or gained a port
		}
		header := unix.NlMsghdr{Type: e.Kind}
		if l, err := netlink.LinkDeserialize(&header, e.Body); err == nil {
			if what := d.on(e.Kind, l.Attrs()); what != "" {
				wake(dataplane.Drift{Object: dataplane.Object{Kind: dataplane.KindLink, Key: l.Attrs().Name}, What: what})
			}
		}
	}, func() {
		d.Resync()
		wake()
	})
}

// on takes in one notification and says what is to be repaired.
func (d *Driver) on(kind uint16, said *netlink.LinkAttrs) (what string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	want, wanted := d.links[said.Name]
	index, configured := d.done[said.Name]
	switch {
	case !wanted:
		return ""
	case kind == unix.RTM_DELLINK:
		if configured && index == said.Index {
			delete(d.done, said.Name) // its pod is gone; the runtime will say so
		}
		return ""
	case !configured:
		return "came"
	case index == said.Index && asWanted(said, want):
		return ""
	}
	// What is said may be of before Apply: a link is made down, and hundreds of them may be made before we read of the first.
	now, err := d.handle.LinkByName(said.Name)
	if err == nil && now.Attrs().Index == index && asWanted(now.Attrs(), want) {
		return ""
	}
	delete(d.done, said.Name)
	return "changed"
}

// asWanted tells whether what notifications tell of a link is as wanted.
func asWanted(at *netlink.LinkAttrs, want desired.WorkloadLink) bool {
	return at.Flags&net.FlagUp != 0 && (want.MTU == 0 || at.MTU == want.MTU) && bytes.Equal(at.HardwareAddr, desired.HostMAC[:])
}

// Entries lists the links that felix wants, with what is missing.
func (d *Driver) Entries() []dataplane.Entry {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []dataplane.Entry
	for name, l := range d.links {
		e := dataplane.Entry{Object: dataplane.Object{Kind: dataplane.KindLink, Key: name}, Desired: fmt.Sprintf("mtu %d up", l.MTU)}
		if _, ok := d.done[name]; ok {
			e.Actual = e.Desired
		}
		e.Err = d.failures.Of(e.Kind, e.Key)
		out = append(out, e)
	}
	for path, s := range d.sysctls {
		now, err := readSysctl(path)
		out = append(out, dataplane.Entry{Object: dataplane.Object{Kind: dataplane.KindSysctl, Key: path}, Desired: s.Value, Actual: now, Err: err})
	}
	return out
}

func ignoreMissing(err error) error {
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) || errors.Is(err, unix.ENODEV) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

const sysctlRoot = "/proc/sys/"

// readSysctl and writeSysctl use system calls alone: a pod's start makes some twenty such calls, and package os would try to
// poll each file.
func readSysctl(path string) (string, error) {
	fd, err := unix.Open(sysctlRoot+path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", &fs.PathError{Op: "open", Path: sysctlRoot + path, Err: err}
	}
	defer func() { _ = unix.Close(fd) }()
	var text [64]byte
	n, err := unix.Read(fd, text[:])
	if err != nil {
		return "", &fs.PathError{Op: "read", Path: sysctlRoot + path, Err: err}
	}
	return strings.TrimSpace(string(text[:n])), nil
}

func writeSysctl(path, value string) error {
	fd, err := unix.Open(sysctlRoot+path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: sysctlRoot + path, Err: err}
	}
	defer func() { _ = unix.Close(fd) }()
	if _, err := unix.Write(fd, []byte(value)); err != nil {
		return &fs.PathError{Op: "write", Path: sysctlRoot + path, Err: err}
	}
	return nil
}
