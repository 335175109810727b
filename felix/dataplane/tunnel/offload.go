package tunnel

import (
	"errors"
	"fmt"

	"github.com/safchain/ethtool"

	"github.com/muslin-net/muslin/felix/desired"
)

// txChecksum is the kernel's name for the feature of a device to leave checksums to what is below it.
const txChecksum = "tx-checksum-ip-generic"

// offload switches that feature, and decides once, by a probe, for devices on which nobody has chosen.
type offload struct {
	tool  *ethtool.Ethtool
	probe func() error // see ProbeChecksums; tried at most once
}

// auto is what devices get on which nobody has chosen: a probe that cannot be carried out says nothing against the kernel.
func (o *offload) auto() desired.Offload {
	if _, broken := errors.AsType[*ChecksumError](o.probe()); broken {
		return desired.OffloadOff
	}
	return desired.OffloadOn
}

// resolve is On or Off.
func (o *offload) resolve(want desired.Offload) desired.Offload {
	if want == desired.OffloadAuto {
		return o.auto()
	}
	return want
}

// actual reads what a device does. One of a kind that does not offload is Off.
func (o *offload) actual(device string) (desired.Offload, error) {
	features, err := o.tool.Features(device)
	if err != nil {
		return desired.OffloadAuto, fmt.Errorf("read features of %s: %w", device, err)
	}
	if features[txChecksum] {
		return desired.OffloadOn, nil
	}
	return desired.OffloadOff, nil
}

// describe is a device's offload in terms of what is wanted: as wanted if it does that, else what it does.
func (o *offload) describe(device string, want desired.Offload) desired.Offload {
	now, err := o.actual(device)
	if err == nil && now == o.resolve(want) {
		return want
	}
	return now
}

// set makes a device do as wanted.
func (o *offload) set(device string, want desired.Offload, do doing) error {
	now, err := o.actual(device)
	if err != nil || now == o.resolve(want) {
		return err
	}
	on := now == desired.OffloadOff
	return do(fmt.Sprintf("switch checksum offload to %t", on), func() error {
		return o.tool.Change(device, map[string]bool{txChecksum: on})
	})
}

// Checksums is the outcome of the probe that decides about devices on which nobody has chosen: nil if checksums come out
// right with offload on, a *ChecksumError if not, another error if it could not be found out. It is tried at most once.
func (d *Driver) Checksums() error { return d.offload.probe() }
