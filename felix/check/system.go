package check

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/dataplane/ipip"
	"github.com/muslin-net/muslin/felix/dataplane/tunnel"
	"github.com/muslin-net/muslin/felix/server"
	"github.com/muslin-net/muslin/felix/state"
)

// probeName is what probes call what they make, for as long as they look.
const probeName = "probe.calico"

// System tells what the kernel can do, what is needed first, and its release.
func (c Checks) System(ctx context.Context) ([]server.Feature, string, error) {
	pools, err := c.Agent.TunnelPools(ctx)
	if err != nil {
		return nil, "", err
	}
	known, err := c.Agent.Capabilities(ctx)
	if err != nil {
		return nil, "", err
	}
	neededBy := func(t view.Tunnel) string {
		if name := pools[t]; name != "" {
			return "pool " + name
		}
		return ""
	}
	const always = "pods' routes and policy"
	features := []server.Feature{
		feature("nftables", always, "rules, sets and connection tracking", nftablesWorks()),
		feature("forwarding", always, "IPv4 packets are forwarded", forwards()),
		learned(known, api.FeatureVXLAN, neededBy(view.TunnelVXLAN), tunnel.ProbeVXLAN),
		learned(known, api.FeatureIPIP, neededBy(view.TunnelIPIP), func() error {
			_, err := ipip.Probe(ipip.Auto)
			return err
		}),
		feature("ipset", "", "sets for rules of iptables", ipsetWorks()),
		feature("checksum-offload", "", "checksums in VXLAN come out right", c.Checksums()),
	}
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	return features, strings.TrimSpace(string(release)), err
}

func feature(name, neededBy, means string, err error) server.Feature {
	f := server.Feature{Name: name, NeededBy: neededBy, Present: err == nil, Detail: means}
	if err != nil {
		f.Detail = err.Error()
	}
	if _, wrong := errors.AsType[*tunnel.ChecksumError](err); wrong {
		f.Detail += "; felix switches it off on its tunnels, unless featureDetectOverride says ChecksumOffloadBroken=false"
	}
	return f
}

// learned is a feature that felix has tried, by all means that it has: it goes by that. Only what it has not is tried now.
func learned(known state.Capabilities, name, neededBy string, probe func() error) server.Feature {
	if means, has := known.Has[name]; has {
		return server.Feature{Name: name, NeededBy: neededBy, Present: true, Detail: means}
	}
	if why, lacks := known.Lacks[name]; lacks {
		return server.Feature{Name: name, NeededBy: neededBy, Detail: why}
	}
	return feature(name, neededBy, "", probe())
}

// nftablesWorks makes a table with a set and a rule that asks connection tracking, and removes it in one transaction.
func nftablesWorks() error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w; load the module nf_tables", err)
	}
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: probeName})
	chain := c.AddChain(&nftables.Chain{Name: "c", Table: table})
	if err := c.AddSet(&nftables.Set{Name: "s", Table: table, KeyType: nftables.TypeIPAddr, Interval: true}, nil); err != nil {
		return err
	}
	c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{&expr.Ct{Key: expr.CtKeySTATE, Register: 1}}})
	c.DelTable(table)
	if err := c.Flush(); err != nil {
		return fmt.Errorf("make a table of nftables: %w; load the modules nf_tables, nft_ct and nf_conntrack", err)
	}
	return nil
}

// ipsetWorks makes a set and removes it.
func ipsetWorks() error {
	h, err := netlink.NewHandle(unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	defer h.Close()
	if err := h.IpsetCreate(probeName, "hash:net", netlink.IpsetCreateOptions{Replace: true}); err != nil {
		return fmt.Errorf("make a set: %w; load the modules ip_set and ip_set_hash_net", err)
	}
	return h.IpsetDestroy(probeName)
}

// forwards looks whether the node forwards packets, as felix has it do unless told otherwise.
func forwards() error {
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
	if err == nil && strings.TrimSpace(string(text)) != "1" {
		err = errors.New("net.ipv4.ip_forward is 0; set it to 1, or ipForwarding to Enabled")
	}
	return err
}
