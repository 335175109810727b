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

// handBlock is the addresses of a node's pods in a lab by hand.
func handBlock(index int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, byte(index), 0}), 26)
}

// handPool is the pool that holds all hand blocks.
func handPool() Pool { return NewPool(netip.MustParsePrefix("192.168.0.0/16")) }

// byHand turns a topology into one of machines that run nothing.
func byHand(t Topology) Topology {
	t.Nodes = append([]Node(nil), t.Nodes...)
	for i := range t.Nodes {
		t.Nodes[i].Processes = []string{}
	}
	t.Pods, t.Pools = nil, []Pool{handPool()}
	return t
}

// buildStockPlugins builds ptp and host-local of containernetworking/plugins, of the version in go.mod, into dir.
func buildStockPlugins(ctx context.Context, dir string) error {
	for name, pkg := range map[string]string{"ptp": "main/ptp", "host-local": "ipam/host-local"} {
		cmd := exec.CommandContext(ctx, "go", "build", "-o", filepath.Join(dir, name), "github.com/containernetworking/plugins/plugins/"+pkg)
		if out, err := cmd.CombinedOutput(); err != nil {
			return problem(fmt.Sprintf("cannot build the stock CNI plugin %s: %v: %s", name, err, lastOf(string(out))), "run it inside the source tree, with Go in the PATH")
		}
	}
	return nil
}

// useStockPlugins makes each node wire its pods with ptp and host-local from dir, out of its hand block.
func useStockPlugins(l *Lab, t Topology, dir string) error {
	for i, n := range t.Nodes {
		node := nodeDir(l.dir, n.Name)
		for _, name := range []string{"ptp", "host-local"} {
			if err := os.Symlink(filepath.Join(dir, name), filepath.Join(node, "opt-cni/bin", name)); err != nil {
				return err
			}
		}
		conf := fmt.Sprintf(`{"cniVersion": "1.0.0", "name": "stock", "plugins": [
  {"type": "ptp", "ipam": {"type": "host-local", "subnet": %q, "routes": [{"dst": "0.0.0.0/0"}]}}]}
`, handBlock(i))
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
	for i, n := range t.Nodes {
		script := []string{"echo 1 > /proc/sys/net/ipv4/ip_forward", "ip link del vxlan.calico 2>/dev/null || true"}
		switch mode {
		case ModeVXLAN:
			script = append(script,
				fmt.Sprintf("ip link add vxlan.calico type vxlan id 4096 dev %s dstport %d nolearning", n.Interface, defaultVXLANPort),
				fmt.Sprintf("ip addr add %s/32 dev vxlan.calico", handVTEP(i)),
				fmt.Sprintf("ip link set vxlan.calico address %s up", handMAC(i)))
		case ModeIPIP:
			script = append(script, fmt.Sprintf("ip addr replace %s/32 dev tunl0", handVTEP(i)), "ip link set tunl0 up")
		}
		for j, other := range t.Nodes {
			addr := other.Addresses[0]
			switch {
			case j == i:
			case mode == ModeVXLAN:
				script = append(script,
					fmt.Sprintf("ip neigh replace %s lladdr %s dev vxlan.calico nud permanent", handVTEP(j), handMAC(j)),
					fmt.Sprintf("bridge fdb append %s dev vxlan.calico dst %s", handMAC(j), addr),
					fmt.Sprintf("ip route replace %s via %s dev vxlan.calico onlink", handBlock(j), handVTEP(j)))
			case mode == ModeIPIP:
				script = append(script, fmt.Sprintf("ip route replace %s via %s dev tunl0 onlink", handBlock(j), addr))
			case t.sameSubnet(n.Name, other.Name):
				script = append(script, fmt.Sprintf("ip route replace %s via %s", handBlock(j), addr))
			default:
				home, prefix, _ := t.subnetOf(n.Addresses[0])
				script = append(script, fmt.Sprintf("ip route replace %s via %s", handBlock(j), home.gatewayFor(prefix)))
			}
		}
		if _, err := l.Run(ctx, n.Name, "sh", "-exc", strings.Join(script, "\n")); err != nil {
			return fmt.Errorf("route by hand: %w", err)
		}
	}
	return nil
}

func handVTEP(index int) netip.Addr { return netip.AddrFrom4([4]byte{192, 168, byte(index), 63}) }

func handMAC(index int) string { return fmt.Sprintf("02:00:00:00:00:%02x", index) }

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
	pool := handPool().CIDR
	undo = func(ctx context.Context) error { return all(ctx, "delete table ip guard") }
	return undo, all(ctx, fmt.Sprintf(`add table ip guard
		add chain ip guard source { type filter hook prerouting priority raw; }
		add rule ip guard source iifname "veth*" fib saddr . iif oif 0 drop
		add chain ip guard outgoing { type nat hook postrouting priority srcnat; }
		add rule ip guard outgoing ip saddr %[1]s ip daddr != %[1]s masquerade`, pool))
}
