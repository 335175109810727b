package tunnel

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/felix/desired"
)

// CapabilityError says that the kernel lacks what a tunnel needs. It does not go away by trying again.
type CapabilityError struct {
	Feature string // "VXLAN", "IP-in-IP"
	Module  string // the kernel module that has it
	Setting string // the setting of a pool that asks for it
	Instead string // the setting that does without it; empty: none does
	Err     error
}

// Error names the feature and the choices.
func (e *CapabilityError) Error() string {
	choice := e.Setting + " to Never"
	if e.Instead != "" {
		choice = e.Instead + " instead of " + e.Setting
	}
	return fmt.Sprintf("the kernel has no %s: %v; load the module %s, boot a kernel that has it, or set %s on the pools",
		e.Feature, e.Err, e.Module, choice)
}

// Unwrap is the kernel's answer.
func (e *CapabilityError) Unwrap() error { return e.Err }

// probeDevice is made and removed by probes. It is never set up.
const probeDevice = "probe.calico"

// ProbeVXLAN finds out by doing whether the kernel has VXLAN: nil, a *CapabilityError, or another failure.
func ProbeVXLAN() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = probeDevice
	const lastVNI = 1<<24 - 1 // nobody's, so that no device of ours is in the way
	return probe(&netlink.Vxlan{LinkAttrs: attrs, VxlanId: lastVNI, Port: desired.DefaultVXLANPort},
		CapabilityError{Feature: "VXLAN", Module: "vxlan", Setting: "vxlanMode"})
}

func probe(device netlink.Link, lack CapabilityError) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("probe %s: open netlink: %w", lack.Feature, err)
	}
	defer h.Close()
	err = h.LinkAdd(device)
	switch {
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EAFNOSUPPORT):
		lack.Err = err
		return &lack
	case errors.Is(err, unix.EEXIST):
		return nil // an earlier probe was killed before it could clean up: the feature is there
	case err != nil:
		return fmt.Errorf("probe %s: make a device: %w", lack.Feature, err)
	}
	if err := h.LinkDel(device); err != nil {
		return fmt.Errorf("probe %s: remove the device %s again: %w", lack.Feature, probeDevice, err)
	}
	return nil
}
