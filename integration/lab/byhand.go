package lab

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// A lab by hand is what Muslin is measured against, and what the lab's own judgement is tested on: nodes that run
// nothing, pods wired by the stock CNI plugins, routes and tunnels made with iproute2.

// handPool is the pool that holds all hand blocks of a family.
func handPool(v6 bool) Pool {
	if v6 {
		return NewPool(netip.MustParsePrefix("fd00:192::/48"))
	}
	return NewPool(netip.MustParsePrefix("192.168.0.0/16"))
}

// handAddress is one in a node's part of the pool.
func handAddress(pool netip.Prefix, index int, last byte) netip.Addr {
	if a := pool.Addr(); a.Is4() {
		b := a.As4()
		b[2], b[3] = byte(index), last
		return netip.AddrFrom4(b)
	}
	b := pool.Addr().As16()
	b[7], b[15] = byte(index), last
	return netip.AddrFrom16(b)
}

// handBlock is the addresses of a node's pods in a lab by hand.
func handBlock(pool netip.Prefix, index int) netip.Prefix {
	bits := 26
	if pool.Addr().Is6() {
		bits = 122
	}
	return netip.PrefixFrom(handAddress(pool, index, 0), bits)
}

// handVTEP is the address of a node's tunnel device.
func handVTEP(pool netip.Prefix, index int) netip.Addr { return handAddress(pool, index, 63) }

func handMAC(index int) string { return fmt.Sprintf("02:00:00:00:00:%02x", index) }

// byHand turns a topology into one of machines that run nothing, whose pods have addresses of the first pool's family.
func byHand(t Topology) Topology {
	v6 := len(t.Pools) > 0 && t.Pools[0].CIDR.Addr().Is6()
	t.Nodes = append([]Node(nil), t.Nodes...)
	for i := range t.Nodes {
		t.Nodes[i].Processes = []string{}
	}
	t.Pods, t.Pools = nil, []Pool{handPool(v6)}
	return t
}

// stockPlugins are those of containernetworking/plugins that wire pods by hand, with their packages.
var stockPlugins = map[string]string{"ptp": "main/ptp", "bridge": "main/bridge", "host-local": "ipam/host-local"}

// buildStockPlugins builds them, of the version in go.mod, into dir: as small as ours.
func buildStockPlugins(ctx context.Context, dir string) error {
	for name, pkg := range stockPlugins {
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(dir, name), "github.com/containernetworking/plugins/plugins/"+pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return problem(fmt.Sprintf("cannot build the stock CNI plugin %s: %v: %s", name, err, lastOf(string(out))), "run it inside the source tree, with Go in the PATH")
		}
	}
	return nil
}

// useStockPlugins makes each node wire its pods with ptp and host-local from dir, out of its hand block.
func useStockPlugins(l *Lab, t Topology, dir string) error {
	pool, everywhere := t.Pools[0].CIDR, "0.0.0.0/0"
	if pool.Addr().Is6() {
		everywhere = "::/0"
	}
	for i, n := range t.Nodes {
		node := nodeDir(l.dir, n.Name)
		for name := range stockPlugins {
			if err := os.Symlink(filepath.Join(dir, name), filepath.Join(node, "opt-cni/bin", name)); err != nil {
				return err
			}
		}
		conf := fmt.Sprintf(`{"cniVersion": "1.0.0", "name": "stock", "plugins": [
  {"type": "ptp", "ipam": {"type": "host-local", "subnet": %q, "routes": [{"dst": %q}]}}]}
`, handBlock(pool, i), everywhere)
		if err := os.WriteFile(filepath.Join(node, "etc-cni/net.d", conflistName), []byte(conf), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// hasIPIP tells whether a node's kernel has the IP-in-IP device.
func hasIPIP(ctx context.Context, l *Lab, node string) bool {
	_, err := l.Run(ctx, node, "sh", "-c", "ip link show tunl0 || { modprobe -q ipip && ip link show tunl0; }")
	return err == nil
}

// handRoutes lets nodes know each other's pods: by plain routing, or through a tunnel device. What another mode left is
// taken back.
func handRoutes(ctx context.Context, l *Lab, t Topology, mode Mode) error {
	pool := t.Pools[0].CIDR
	v6 := pool.Addr().Is6()
	dev := tunnelDevice(mode.path(false), v6)
	forward := "net.ipv4.ip_forward"
	if v6 {
		forward = "net.ipv6.conf.all.forwarding"
	}
	for i, n := range t.Nodes {
		script := []string{"sysctl -qw " + forward + "=1", "ip link del " + tunnelDevice(PathVXLAN, v6) + " 2>/dev/null || true"}
		switch mode {
		case ModeVXLAN:
			script = append(script,
				fmt.Sprintf("ip link add %s type vxlan id 4096 dev %s local %s dstport %d nolearning", dev, n.Interface, n.address(v6), defaultVXLANPort),
				fmt.Sprintf("ip addr add %s dev %s", handVTEP(pool, i), dev),
				fmt.Sprintf("ip link set %s address %s up", dev, handMAC(i)))
		case ModeIPIP:
			script = append(script, fmt.Sprintf("ip addr replace %s/32 dev %s", handVTEP(pool, i), dev), "ip link set "+dev+" up")
		}
		for j, other := range t.Nodes {
			block := handBlock(pool, j)
			switch {
			case j == i:
			case mode == ModeVXLAN:
				script = append(script,
					// IPv6 takes no next hop that another route, of the mode before, leads to by another device.
					fmt.Sprintf("ip route del %s 2>/dev/null || true", block),
					fmt.Sprintf("ip neigh replace %s lladdr %s dev %s nud permanent", handVTEP(pool, j), handMAC(j), dev),
					fmt.Sprintf("bridge fdb append %s dev %s dst %s", handMAC(j), dev, other.address(v6)),
					fmt.Sprintf("ip route replace %s via %s dev %s onlink", block, handVTEP(pool, j), dev))
			case mode == ModeIPIP:
				script = append(script, fmt.Sprintf("ip route replace %s via %s dev %s onlink", block, other.address(v6), dev))
			case t.sameSubnet(n.Name, other.Name):
				script = append(script, fmt.Sprintf("ip route replace %s via %s", block, other.address(v6)))
			default:
				home, prefix, _ := t.subnetOf(n.address(v6))
				script = append(script, fmt.Sprintf("ip route replace %s via %s", block, home.gatewayFor(prefix)))
			}
		}
		if _, err := l.Run(ctx, n.Name, "sh", "-exc", strings.Join(script, "\n")); err != nil {
			return fmt.Errorf("route by hand: %w", err)
		}
	}
	return nil
}

// trackConnections makes the kernels of all nodes track forwarded connections, as any network with policy or address
// translation has to.
func trackConnections(ctx context.Context, l *Lab, t Topology) error {
	for _, n := range t.Nodes {
		_, err := l.Run(ctx, n.Name, "nft", "add table inet hand; add chain inet hand forward { type filter hook forward priority 0; }; "+
			"add rule inet hand forward ct state established,related accept")
		if err != nil {
			return err
		}
	}
	return nil
}

// guard gives all nodes by hand what Muslin's rules do to each packet of an established flow beside tracking it: a pod's
// source is looked up, and the kernel is ready to translate what leaves the pool. The result takes it back.
func guard(ctx context.Context, l *Lab, t Topology) (undo func(context.Context) error, err error) {
	all := func(ctx context.Context, script string) error {
		for _, n := range t.Nodes {
			if _, err := l.Run(ctx, n.Name, "nft", script); err != nil {
				return err
			}
		}
		return nil
	}
	family := "ip"
	if t.Pools[0].CIDR.Addr().Is6() {
		family = "ip6"
	}
	undo = func(ctx context.Context) error { return all(ctx, "delete table "+family+" guard") }
	return undo, all(ctx, fmt.Sprintf(`add table %[1]s guard
		add chain %[1]s guard source { type filter hook prerouting priority raw; }
		add rule %[1]s guard source iifname "veth*" fib saddr . iif oif 0 drop
		add chain %[1]s guard outgoing { type nat hook postrouting priority srcnat; }
		add rule %[1]s guard outgoing %[1]s saddr %[2]s %[1]s daddr != %[2]s masquerade`, family, t.Pools[0].CIDR))
}
