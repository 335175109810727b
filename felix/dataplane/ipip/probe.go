package ipip

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/felix/dataplane/tunnel"
)

// Backend is who encapsulates.
type Backend uint8

// The backends.
const (
	Auto   Backend = iota // the kernel's device if there is one, else BPF
	Kernel                // the device of the module ipip
	BPF                   // tc programs around a device of ours
)

// String is the backend's name for people.
func (b Backend) String() string {
	switch b {
	case Kernel:
		return "the kernel module ipip"
	case BPF:
		return "BPF"
	}
	return "auto"
}

// probeDevice is made and removed by probes. It is never set up.
const probeDevice = "probe.calico"

// Probe finds out by doing which backend the kernel of the caller's network namespace has: the asked one, or with Auto
// the first that works. If the module ipip is there but not loaded, asking loads it. If there is none, the error is a
// *tunnel.CapabilityError that says why of each.
func Probe(asked Backend) (Backend, error) {
	var reasons []error
	if asked != BPF {
		err := probeKernel()
		if err == nil {
			return Kernel, nil
		}
		reasons = append(reasons, fmt.Errorf("the module ipip: %w", err))
	}
	if asked != Kernel {
		err := probeBPF()
		if err == nil {
			return BPF, nil
		}
		reasons = append(reasons, fmt.Errorf("BPF: %w", err))
	}
	return asked, &tunnel.CapabilityError{
		Feature: "IP-in-IP", Module: "ipip", Setting: "ipipMode", Instead: "vxlanMode", Err: sentence(reasons),
	}
}

// sentence joins errors in one line.
func sentence(errs []error) error {
	if len(errs) == 2 {
		return fmt.Errorf("%w; %w", errs[0], errs[1])
	}
	return errors.Join(errs...)
}

func probeKernel() error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = probeDevice
	// Without addresses it would be the fallback device itself; these are for documentation (RFC 5737).
	device := &netlink.Iptun{LinkAttrs: attrs, Local: net.IPv4(192, 0, 2, 1), Remote: net.IPv4(192, 0, 2, 2)}
	err = withoutFallback(func() error { return h.LinkAdd(device) })
	if errors.Is(err, unix.EEXIST) {
		err = nil // an earlier probe was killed before it could clean up: the feature is there
	}
	if err != nil {
		return err
	}
	if err := h.LinkDel(device); err != nil {
		if _, gone := errors.AsType[netlink.LinkNotFoundError](err); !gone { // another probe at the same time was faster
			return fmt.Errorf("remove the device %s again: %w", probeDevice, err)
		}
	}
	return nil
}

// fallbackSetting says whether modules of tunnels make a device in each namespace that nobody can remove: 0 yes, 1 in the
// initial one, 2 no. It is there in the initial namespace only.
const fallbackSetting = "/proc/sys/net/core/fb_tunnels_only_for_init_net"

// withoutFallback has load, which may make the kernel load the module ipip, leave no undeletable tunl0 behind. Where
// that cannot be had, it just loads.
func withoutFallback(load func() error) error {
	if _, err := os.Stat("/sys/module/ipip"); err == nil {
		return load() // what there is to be made was made
	}
	old, err := os.ReadFile(fallbackSetting)
	if err != nil || bytes.HasPrefix(old, []byte("2")) || os.WriteFile(fallbackSetting, []byte("2"), 0) != nil {
		return load()
	}
	err = load()
	if restored := os.WriteFile(fallbackSetting, old, 0); restored != nil {
		err = errors.Join(err, fmt.Errorf("set %s back to %s: %w", fallbackSetting, bytes.TrimSpace(old), restored))
	}
	return err
}

// probeBPF loads the programs, runs them once on a packet, and attaches them to a device that goes at once.
func probeBPF() error {
	p, err := load(nil)
	if err != nil {
		return err
	}
	defer p.close()
	if err := p.try(); err != nil {
		return err
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = probeDevice
	device := &netlink.Veth{LinkAttrs: attrs, PeerName: probeDevice + ".2"}
	if err := h.LinkAdd(device); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make a veth pair: %w", err)
	}
	defer h.LinkDel(device) //nolint:errcheck // if it stays, the next probe uses and removes it
	link, err := h.LinkByName(probeDevice)
	if err != nil {
		return err
	}
	if err := h.QdiscAdd(clsact(link.Attrs().Index)); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add a clsact qdisc: %w", err)
	}
	for _, hook := range []hook{outHook, inHook} {
		if err := h.FilterReplace(hook.filter(link.Attrs().Index, p)); err != nil {
			return fmt.Errorf("attach the program %s: %w", hook.program, err)
		}
	}
	return nil
}
