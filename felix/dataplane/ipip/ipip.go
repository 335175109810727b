package ipip

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/felix/dataplane"
	"github.com/muslin-net/muslin/felix/dataplane/internal/nlsock"
	"github.com/muslin-net/muslin/felix/desired"
	"github.com/muslin-net/muslin/internal/delta"
)

// Kinds of objects that only this driver has.
const (
	KindEncap dataplane.Kind = "encap" // a destination, by prefix
	KindDecap dataplane.Kind = "decap" // a node whose packets are taken, by address
)

// Config is what a Driver is made with.
type Config struct {
	Log     *slog.Logger // nil: none
	Backend Backend
}

// Driver is the driver. Its methods may be called from several goroutines.
type Driver struct {
	cfg    Config
	handle *netlink.Handle
	events *nlsock.Conn

	mu       sync.Mutex // guards the following
	want     *desired.IPIP
	encaps   *delta.Tracker[netip.Prefix, desired.Encap]
	decaps   *delta.Tracker[netip.Addr, desired.Decap]
	whole    bool
	dirty    bool // devices and filters must be looked at
	dry      bool // only find out whether something would be written
	probed   bool // backend and lack are known
	backend  Backend
	lack     error
	programs *programs // nil: not loaded
	watched  map[int]struct{}
	left     int // index of the fallback device that could not be removed
	repairs  dataplane.Repairs[desired.IPIP]
	odd      []string // uplinks that were said not to be used
	several  bool     // some nodes are sent to by another device than the parent
	failures dataplane.Failures
	writes   uint64
}

// New opens the driver on the caller's network namespace. It writes nothing, and asks nothing of the kernel.
func New(cfg Config) (*Driver, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("IP-in-IP driver: %w", err)
	}
	events, err := nlsock.Dial(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_TC)
	if err != nil {
		h.Close()
		return nil, fmt.Errorf("IP-in-IP driver: %w", err)
	}
	return &Driver{
		cfg: cfg, handle: h, events: events, dirty: true,
		encaps: delta.New[netip.Prefix](func(a, b desired.Encap) bool { return a == b }),
		decaps: delta.New[netip.Addr](func(a, b desired.Decap) bool { return a == b }),
	}, nil
}

// Close releases sockets and references; devices, filters and their programs stay and go on working.
func (d *Driver) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.handle.Close()
	d.programs.close()
	d.programs = nil
	_ = d.events.Close() // Watch may have closed it already
	return nil
}

// Writes counts the changes sent to the kernel since New, without those of probes.
func (d *Driver) Writes() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.writes
}

// Update takes changes of the desired state. The only device is tunl0.
func (d *Driver) Update(devices desired.Delta[string, desired.IPIP], encaps desired.Delta[netip.Prefix, desired.Encap],
	decaps desired.Delta[netip.Addr, desired.Decap],
) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, gone := devices.Removed[desired.IPIPDevice]; gone {
		d.want, d.dirty = nil, true
	}
	if want, ok := devices.Set[desired.IPIPDevice]; ok && (d.want == nil || *d.want != want) {
		d.want, d.dirty = &want, true
	}
	dataplane.Want(d.encaps, encaps)
	dataplane.Want(d.decaps, decaps)
	if decaps.Empty() {
		return
	}
	several := false
	for _, node := range d.decaps.AllDesired() {
		several = several || node.Out != 0
	}
	d.dirty = d.dirty || d.several != several
	d.several = several
}

// Whole says that Update was told everything: from now on, what is not wanted is removed.
func (d *Driver) Whole() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dirty = d.dirty || !d.whole
	d.whole = true
}

// Resync makes the next Apply read everything from the kernel, and a kernel that lacked IP-in-IP be asked again.
func (d *Driver) Resync() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dirty = true
	d.programs.close()
	d.programs = nil
	d.probed = d.probed && d.lack == nil
}

// Apply makes the kernel agree. What failed stays due and is in the error, one ObjectError for each object.
func (d *Driver) Apply(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failures = dataplane.Failures{}
	if d.dirty {
		err := d.agree()
		d.failures.Add(dataplane.KindLink, desired.IPIPDevice, err)
		d.dirty = err != nil
	} else if d.programs != nil && d.want != nil {
		d.syncEntries()
	}
	return d.failures.Join()
}

// agree makes devices, filters and maps as wanted, or finds out, if d.dry, what it would do first: errDrift then.
func (d *Driver) agree() error {
	if d.want == nil {
		if !d.whole {
			return nil
		}
		return d.remove()
	}
	backend, err := d.probe()
	if err != nil {
		return err
	}
	if !d.want.Local.Is4() {
		return errors.New("the node has no IPv4 address, which IP-in-IP needs as the outer source; set spec.bgp.ipv4Address of the node")
	}
	if backend == Kernel {
		return d.ensureKernel(*d.want)
	}
	return d.ensureBPF(*d.want)
}

// errDrift stops a dry run at the first write.
type errDrift struct{ todo string }

func (e *errDrift) Error() string { return "would " + e.todo }

// do changes something, unless the run is dry. What is said to be done is in the infinitive, for errors and logs.
func (d *Driver) do(what string, change func() error) error {
	if d.dry {
		return &errDrift{what}
	}
	d.writes++
	if err := change(); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// Probe finds out by doing, until one is found, which backend this kernel has; a *tunnel.CapabilityError if none.
func (d *Driver) Probe() (Backend, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.probed = d.probed && d.lack == nil
	return d.probe()
}

func (d *Driver) probe() (Backend, error) {
	if !d.probed {
		d.backend, d.lack = Probe(d.cfg.Backend)
		d.probed = true
		if d.lack == nil {
			d.cfg.Log.Info("IP-in-IP is done by", "backend", d.backend.String())
		}
	}
	return d.backend, d.lack
}

// Entries lists the device and, where the backend has them, destinations and nodes: desired beside actual.
func (d *Driver) Entries() []dataplane.Entry {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.want == nil {
		return nil
	}
	e := dataplane.Entry{
		Object:  dataplane.Object{Kind: dataplane.KindLink, Key: desired.IPIPDevice},
		Desired: fmt.Sprintf("%+v", *d.want),
		Err:     d.failures.Of(dataplane.KindLink, desired.IPIPDevice),
	}
	if !d.dirty {
		e.Actual = e.Desired
	}
	out := []dataplane.Entry{e}
	if d.programs == nil {
		return out
	}
	out = append(out, entries(d, KindEncap, d.encaps, func(v desired.Encap) string { return "to " + v.Remote.String() })...)
	return append(out, entries(d, KindDecap, d.decaps, desired.Decap.String)...)
}

func entries[K interface {
	comparable
	fmt.Stringer
}, V any](d *Driver, kind dataplane.Kind, t *delta.Tracker[K, V], text func(V) string) []dataplane.Entry {
	var out []dataplane.Entry
	for k, v := range t.AllDesired() {
		e := dataplane.Entry{Object: dataplane.Object{Kind: kind, Key: k.String()}, Desired: text(v)}
		if have, ok := t.Actual(k); ok {
			e.Actual = text(have)
		}
		e.Err = d.failures.Of(kind, e.Key)
		out = append(out, e)
	}
	for k, have := range t.AllActual() {
		if _, wanted := t.Desired(k); !wanted {
			out = append(out, dataplane.Entry{Object: dataplane.Object{Kind: kind, Key: k.String()}, Actual: text(have)})
		}
	}
	return out
}

// Counters is how many packets the programs sent, took, dropped and left alone, by reason; nil if the backend is not BPF.
func (d *Driver) Counters() (map[string]uint64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.programs == nil {
		return nil, nil
	}
	return d.programs.counted()
}
