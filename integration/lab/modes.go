package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Mode is how an IP pool carries packets between nodes.
type Mode string

// The modes of a pool.
const (
	ModeDirect           Mode = "direct" // never encapsulated
	ModeIPIP             Mode = "ipip"
	ModeIPIPCrossSubnet  Mode = "ipip-cross-subnet" // encapsulated between subnets only
	ModeVXLAN            Mode = "vxlan"
	ModeVXLANCrossSubnet Mode = "vxlan-cross-subnet"
)

// Modes are all modes.
func Modes() []Mode {
	return []Mode{ModeDirect, ModeIPIP, ModeIPIPCrossSubnet, ModeVXLAN, ModeVXLANCrossSubnet}
}

// modeFields are what ipipMode and vxlanMode of an IPPool are for each mode.
var modeFields = map[Mode]struct{ ipip, vxlan string }{
	ModeDirect:           {"Never", "Never"},
	ModeIPIP:             {"Always", "Never"},
	ModeIPIPCrossSubnet:  {"CrossSubnet", "Never"},
	ModeVXLAN:            {"Never", "Always"},
	ModeVXLANCrossSubnet: {"Never", "CrossSubnet"},
}

// Fields are the values of ipipMode and vxlanMode that make a pool's mode; empty for a mode that is none.
func (m Mode) Fields() (ipipMode, vxlanMode string) {
	f := modeFields[m]
	return f.ipip, f.vxlan
}

// check refuses what is no mode.
func (m Mode) check() error {
	if _, ok := modeFields[m]; ok {
		return nil
	}
	var names []string
	for _, known := range Modes() {
		names = append(names, string(known))
	}
	return problem(fmt.Sprintf("unknown mode %q", m), "use one of "+strings.Join(names, ", "))
}

// path is the way between two nodes in this mode. PathNone is for a direct pool across subnets: its packets are routed to
// the fabric's router, which knows no pods.
func (m Mode) path(sameSubnet bool) Path {
	switch {
	case m == ModeIPIP, m == ModeIPIPCrossSubnet && !sameSubnet:
		return PathIPIP
	case m == ModeVXLAN, m == ModeVXLANCrossSubnet && !sameSubnet:
		return PathVXLAN
	case m == ModeDirect && !sameSubnet:
		return PathNone
	}
	return PathDirect
}

// Mode is the mode that the pool's fields make.
func (p Pool) Mode() Mode {
	for _, m := range Modes() {
		if ipip, vxlan := m.Fields(); p.IPIPMode == ipip && p.VXLANMode == vxlan {
			return m
		}
	}
	return ""
}

// WithMode returns the pool in another mode.
func (p Pool) WithMode(m Mode) Pool {
	p.IPIPMode, p.VXLANMode = m.Fields()
	return p
}

// Pools returns the pools that the cluster has, as calicoctl shows them.
func (l *Lab) Pools(ctx context.Context) ([]Pool, error) {
	st, err := l.Status(ctx)
	if err != nil {
		return nil, err
	}
	out, err := l.Run(ctx, st.Nodes[0].Name, "calicoctl", "get", "ippools", "-o", "json")
	if err != nil {
		return nil, err
	}
	var list struct {
		Items []struct {
			Metadata struct{ Name string }
			Spec     struct {
				CIDR                              netip.Prefix
				BlockSize                         int
				IPIPMode, VXLANMode, NodeSelector string
				NATOutgoing                       *bool
			}
		}
	}
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		return nil, fmt.Errorf("read the pools: %w", err)
	}
	var pools []Pool
	for _, it := range list.Items {
		p := Pool{
			Name: it.Metadata.Name, CIDR: it.Spec.CIDR, BlockSize: it.Spec.BlockSize, IPIPMode: it.Spec.IPIPMode,
			VXLANMode: it.Spec.VXLANMode, NATOutgoing: it.Spec.NATOutgoing, NodeSelector: it.Spec.NodeSelector,
		}
		p.setDefaults()
		pools = append(pools, p)
	}
	return pools, nil
}

// SetMode changes a pool's mode as a user does, with calicoctl patch. It does not wait for the nodes.
func (l *Lab) SetMode(ctx context.Context, pool string, m Mode) error {
	if err := m.check(); err != nil {
		return err
	}
	st, err := l.Status(ctx)
	if err != nil {
		return err
	}
	ipip, vxlan := m.Fields()
	patch := fmt.Sprintf(`{"spec":{"ipipMode":%q,"vxlanMode":%q}}`, ipip, vxlan)
	_, err = l.Run(ctx, st.Nodes[0].Name, "calicoctl", "patch", "ippool", pool, "--patch", patch)
	return err
}

// tunnelDevice is the device of a path between nodes, empty for a path that needs none.
func tunnelDevice(p Path, v6 bool) string {
	switch {
	case p == PathIPIP:
		return "tunl0"
	case p == PathVXLAN && v6:
		return "vxlan-v6.calico"
	case p == PathVXLAN:
		return "vxlan.calico"
	}
	return ""
}

// tunnelDevices are those of all paths.
var tunnelDevices = []string{"tunl0", "vxlan.calico", "vxlan-v6.calico"}

func isTunnel(dev string) bool { return slices.Contains(tunnelDevices, dev) }
