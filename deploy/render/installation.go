package render

import (
	"fmt"
	"net/netip"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/node/pools"
)

const (
	enabled  = "Enabled"
	disabled = "Disabled"
)

// installation reads an Installation of the Tigera operator. What it may ask for that Muslin does not do is refused, so that
// nobody has to find out later.
func installation(f field) (v Values, err error) {
	v = Defaults()
	spec, err := f.child("spec")
	if err == nil {
		err = spec.only("variant", "cni", "calicoNetwork", "imagePullSecrets", "controlPlaneReplicas", "nodeMetricsPort")
	}
	if err != nil {
		return v, err
	}
	for _, read := range []struct {
		name string
		read func(field, *Values) error
	}{
		{"variant", func(f field, _ *Values) error { _, err := f.oneOf("Calico", "Calico"); return err }},
		{"cni", plugin},
		{"imagePullSecrets", pullSecrets},
		{"controlPlaneReplicas", func(f field, v *Values) (err error) {
			v.KubeControllers.Replicas, err = f.number(v.KubeControllers.Replicas, 1, 100)
			return err
		}},
		{"nodeMetricsPort", metricsPort},
		{"calicoNetwork", network},
	} {
		part, err := spec.child(read.name)
		if err == nil {
			err = read.read(part, &v)
		}
		if err != nil {
			return v, err
		}
	}
	return v, nil
}

// plugin reads spec.cni: there is one choice.
func plugin(f field, _ *Values) error {
	ipam, err := f.child("ipam")
	if err == nil {
		err = f.only("type", "ipam")
	}
	if err == nil {
		err = ipam.only("type")
	}
	for _, part := range []field{f, ipam} {
		var kind field
		if err == nil {
			kind, err = part.child("type")
		}
		if err == nil {
			_, err = kind.oneOf("Calico", "Calico")
		}
	}
	return err
}

func pullSecrets(f field, v *Values) error {
	items, err := f.items()
	for _, i := range items {
		var name field
		if err == nil {
			name, err = i.child("name")
		}
		if err != nil {
			return err
		}
		text, err := name.text("")
		if err != nil {
			return err
		}
		if text == "" {
			return i.wrong("it has no name; give that of a Secret")
		}
		v.Image.PullSecrets = append(v.Image.PullSecrets, text)
	}
	return err
}

func metricsPort(f field, v *Values) error {
	port, err := f.number(9091, 1, 65535)
	if err == nil && f.there() {
		v.Felix.Env["FELIX_PROMETHEUSMETRICSENABLED"] = "true"
		v.Felix.Env["FELIX_PROMETHEUSMETRICSPORT"] = fmt.Sprint(port)
	}
	return err
}

// network reads spec.calicoNetwork.
func network(f field, v *Values) error {
	if err := f.only("bgp", "ipPools", "mtu", "nodeAddressAutodetectionV4", "nodeAddressAutodetectionV6", "hostPorts",
		"containerIPForwarding", "linuxDataplane", "multiInterfaceMode"); err != nil {
		return err
	}
	choice := map[string]string{}
	for _, c := range []struct {
		name    string
		allowed []string // the first is the default
	}{
		{"bgp", []string{enabled, disabled}},
		{"hostPorts", []string{enabled, disabled}},
		{"containerIPForwarding", []string{disabled, enabled}},
		{"linuxDataplane", []string{"Nftables"}},
		{"multiInterfaceMode", []string{"None"}},
	} {
		p, err := f.child(c.name)
		if err != nil {
			return err
		}
		if choice[c.name], err = p.oneOf(c.allowed[0], c.allowed...); err != nil {
			return err
		}
	}
	mtu, err := f.child("mtu")
	if err != nil {
		return err
	}
	if v.CNI.MTU, err = mtu.number(v.CNI.MTU, 0, maxMTU); err != nil {
		return err
	}
	v.CNI.HostPorts, v.CNI.ContainerIPForwarding = choice["hostPorts"] == enabled, choice["containerIPForwarding"] == enabled
	bgp := choice["bgp"] == enabled
	if !bgp {
		*v = v.withoutBGP()
	}
	list, err := f.child("ipPools")
	if err != nil {
		return err
	}
	wanted, err := ipPools(list, bgp)
	if err != nil {
		return err
	}
	if err := families(f, v, wanted); err != nil {
		return err
	}
	v.setPools(wanted)
	return nil
}

// ipPools reads the pools. Without the list there is one, as the operator has it.
func ipPools(f field, bgp bool) (out []NamedPool, err error) {
	items, err := f.items()
	if err != nil {
		return nil, err
	}
	if !f.there() {
		return []NamedPool{defaultPool(bgp)}, nil
	}
	for _, i := range items {
		p, err := ipPool(i, bgp)
		if err != nil {
			return nil, err
		}
		for _, other := range out {
			a, b := netip.MustParsePrefix(other.Spec.CIDR), netip.MustParsePrefix(p.Spec.CIDR)
			if a.Overlaps(b) {
				return nil, i.wrong("its cidr %s overlaps with that of another pool, %s", b, a)
			}
			if p.Name == other.Name && p.Name != "" {
				return nil, i.wrong("another pool has the name %s, too", p.Name)
			}
		}
		out = append(out, p)
	}
	// Without names the first of each family is the default one; others are called after their ranges.
	taken := map[string]bool{}
	for _, p := range out {
		taken[p.Name] = true
	}
	for i := range out {
		p := &out[i]
		cidr := netip.MustParsePrefix(p.Spec.CIDR)
		name := defaultName(cidr)
		if p.Name != "" {
			continue
		}
		if taken[name] {
			name = strings.NewReplacer(".", "-", ":", "-", "/", "-").Replace(cidr.String())
		}
		p.Name, taken[name] = name, true
	}
	return out, nil
}

func defaultName(cidr netip.Prefix) string {
	if cidr.Addr().Is4() {
		return pools.Name4
	}
	return pools.Name6
}

// defaultPool is the pool of an Installation that names none.
func defaultPool(bgp bool) NamedPool {
	p := api.IPPool{Spec: api.IPPoolSpec{CIDR: "192.168.0.0/16", IPIPMode: api.IPIPAlways, NATOutgoing: true}}
	if !bgp {
		p.Spec.IPIPMode, p.Spec.VXLANMode = api.IPIPNever, api.VXLANAlways
	}
	p.Default()
	return NamedPool{Name: pools.Name4, Spec: p.Spec}
}

func ipPool(f field, bgp bool) (out NamedPool, err error) {
	if err := f.only("name", "cidr", "encapsulation", "natOutgoing", "nodeSelector", "blockSize", "disableBGPExport"); err != nil {
		return out, err
	}
	part := func(name string) field {
		c, partErr := f.child(name)
		if err == nil {
			err = partErr
		}
		return c
	}
	name, cidr, encapsulation, nat := part("name"), part("cidr"), part("encapsulation"), part("natOutgoing")
	selector, size, export := part("nodeSelector"), part("blockSize"), part("disableBGPExport")
	if err != nil {
		return out, err
	}
	if !cidr.there() {
		return out, f.wrong("cidr is missing; give the pool's range of addresses, such as 192.168.0.0/16")
	}
	prefix, err := cidr.cidr()
	if err != nil {
		return out, err
	}
	pool := api.IPPool{Spec: api.IPPoolSpec{CIDR: prefix.String()}}
	if out.Name, err = name.text(""); err != nil {
		return out, err
	}
	if err := poolMode(&pool.Spec, encapsulation, prefix, bgp); err != nil {
		return out, err
	}
	natOutgoing, err := nat.oneOf(enabled, enabled, disabled)
	if err != nil {
		return out, err
	}
	pool.Spec.NATOutgoing = natOutgoing == enabled
	if pool.Spec.NodeSelector, err = selector.text("all()"); err != nil {
		return out, err
	}
	if pool.Spec.BlockSize, err = size.number(0, 1, 128); err != nil {
		return out, err
	}
	if pool.Spec.DisableBGPExport, err = export.truth(false); err != nil {
		return out, err
	}
	pool.ObjectMeta = metav1.ObjectMeta{Name: out.Name}
	if out.Name == "" {
		pool.Name = defaultName(prefix)
	}
	pool.Default()
	if err := pool.Validate(); err != nil {
		return out, f.wrong("%w", err)
	}
	out.Spec = pool.Spec
	return out, nil
}

// poolMode reads how packets of a pool travel between nodes.
func poolMode(spec *api.IPPoolSpec, f field, cidr netip.Prefix, bgp bool) error {
	allowed := []string{modeIPIP, modeVXLAN, modeIPIPCrossSubnet, modeVXLANCrossSubnet, modeNone}
	otherwise := modeIPIP
	if cidr.Addr().Is6() {
		otherwise, allowed = modeNone, []string{modeVXLAN, modeVXLANCrossSubnet, modeNone}
	}
	if !bgp {
		otherwise, allowed = modeVXLAN, []string{modeVXLAN, modeVXLANCrossSubnet}
	}
	mode, err := f.oneOf(otherwise, allowed...)
	if err != nil {
		text, _ := f.text("")
		switch {
		case !bgp && (text == modeNone || strings.HasPrefix(text, modeIPIP)):
			return fmt.Errorf("%w, or set bgp to Enabled: nobody else brings the routes that %s needs", err, text)
		case cidr.Addr().Is6() && strings.HasPrefix(text, modeIPIP):
			return fmt.Errorf("%w: IP-in-IP carries IPv4 only", err)
		}
		return err
	}
	p := Pool{IPIP: api.IPIPNever}
	p.setMode(mode)
	spec.IPIPMode, spec.VXLANMode = p.IPIP, p.VXLAN
	return nil
}

// families settles which families pods and nodes have addresses of, and how nodes find theirs.
func families(f field, v *Values, wanted []NamedPool) error {
	v.CNI.AssignIPv4, v.CNI.AssignIPv6 = len(wanted) == 0, false // without pools here, somebody makes them later
	for _, p := range wanted {
		if netip.MustParsePrefix(p.Spec.CIDR).Addr().Is4() {
			v.CNI.AssignIPv4 = true
		} else {
			v.CNI.AssignIPv6 = true
		}
	}
	for _, family := range []struct {
		name string
		has  bool
		into *string
	}{
		{"nodeAddressAutodetectionV4", v.CNI.AssignIPv4, &v.NodeAddress.IPv4},
		{"nodeAddressAutodetectionV6", v.CNI.AssignIPv6, &v.NodeAddress.IPv6},
	} {
		*family.into = ""
		if family.has {
			*family.into = "first-found"
		}
		how, err := f.child(family.name)
		if err != nil {
			return err
		}
		if !how.there() {
			continue
		}
		if *family.into, err = autodetection(how); err != nil {
			return err
		}
	}
	return nil
}

// setPools makes pools of the environment where that can say what is wanted, else objects of all of them: nodes that propose any
// propose one for each family that they have addresses of.
func (v *Values) setPools(wanted []NamedPool) {
	defaults := Defaults()
	v.IPv4Pool, v.IPv6Pool = defaults.IPv4Pool, defaults.IPv6Pool
	v.IPv4Pool.Enabled, v.IPv6Pool.Enabled = false, false
	further := defaults.FurtherPools
	for _, named := range wanted {
		p := &v.IPv6Pool
		if named.Name == pools.Name4 {
			p = &v.IPv4Pool
		} else if named.Name != pools.Name6 {
			further = append(further, named)
			continue
		}
		p.Enabled, p.CIDR, p.VXLAN = true, named.Spec.CIDR, named.Spec.VXLANMode
		if p.IPIP != "" {
			p.IPIP = named.Spec.IPIPMode
		}
		p.NATOutgoing, p.DisableBGPExport = named.Spec.NATOutgoing, named.Spec.DisableBGPExport
		p.BlockSize, p.NodeSelector = named.Spec.BlockSize, named.Spec.NodeSelector
	}
	v.FurtherPools = further
	if v.IPv4Pool.Enabled != (v.NodeAddress.IPv4 != "") || v.IPv6Pool.Enabled != (v.NodeAddress.IPv6 != "") {
		v.IPv4Pool, v.IPv6Pool, v.FurtherPools = defaults.IPv4Pool, defaults.IPv6Pool, append(defaults.FurtherPools, wanted...)
		v.IPv4Pool.Enabled, v.IPv6Pool.Enabled = false, false
	}
}
