//go:build lab

package suite

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/integration/lab"
)

// The ports of servers in each pod, as besidePolicy has them.
const (
	bothAllow     = 7200 + iota
	ingressDenies // only the receiver's policy does
	egressDenies  // only the sender's policy does
	othersDeny    // policy allows it, and a firewall beside ours may not
)

// besidePolicy is about all pods.
const besidePolicy = `
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: beside}
spec:
  order: 10
  selector: has(projectcalico.org/namespace) # all() would be host endpoints, too
  types: [Ingress, Egress]
  ingress:
  - {action: Allow, protocol: TCP, destination: {ports: [7200, 7202, 7203]}}
  egress:
  - {action: Allow, protocol: TCP, destination: {selector: all(), ports: [7200, 7201, 7203]}}
`

// hostPort is a port of a node: of a process to which firewalls of hosts let nobody, or of docker's container.
const hostPort = 8888

// plainPod is a pod of the first node, on which nobody is but us.
const plainPod = "plain"

// neighbour is another firewall.
type neighbour struct {
	name, node, pod string
	setUp           string            // shell: directories of its own, once
	fresh           string            // shell: the machine as it is when nobody of us was there before
	daemon          []string          // if it has one
	start, stop     string            // shell, if it has none
	ready           string            // shell that succeeds when it is there
	admit           map[string]string // shell: what docs/policy.md says it must be told, by rule driver; and what it denies
	reload          string            // shell; none: it is started anew
	denies          bool              // othersDeny
	serves          bool              // hostPort
}

// neighbours are firewalls that Debian has, each on a node of its own.
var neighbours = []neighbour{
	{
		name: "firewalld", node: "worker-1", pod: "pod-1",
		setUp:  private("/etc/firewalld") + "mkdir /run/dbus; dbus-daemon --system --fork --nopidfile --nosyslog",
		daemon: []string{"firewalld", "--nofork", "--nopid"},
		ready:  "firewall-cmd --state",
		admit: map[string]string{
			"nftables": firewalldAdmits, "iptables": firewalldAdmits,
		},
		reload: "firewall-cmd --reload; firewall-cmd --complete-reload",
	},
	{
		name: "ufw", node: "worker-2", pod: "pod-2",
		setUp: private("/etc/ufw"),
		start: "ufw --force enable", stop: "ufw disable", reload: "ufw reload",
		ready: "ufw status | grep -q 'Status: active'",
		admit: map[string]string{
			"nftables": ufwAdmits + "ufw route allow from 192.168.0.0/16; ufw route allow to 192.168.0.0/16; ufw reload",
			"iptables": ufwAdmits + "ufw reload",
		},
		denies: true,
	},
	{
		name: "docker", node: "worker-3", pod: "pod-3",
		setUp:  "mkdir -p /var/lib/docker /etc/docker; for d in /var/lib/docker /etc/docker; do mount -t tmpfs private $d; done; [ $(stat -f -c %T /sys/fs/cgroup) != sysfs ] || mount -t cgroup2 cgroup2 /sys/fs/cgroup",
		fresh:  "sysctl -qw net.ipv4.ip_forward=0", // only then docker gives FORWARD the policy DROP
		daemon: []string{"dockerd", "--storage-driver=vfs"},
		ready:  "docker version",
		admit: map[string]string{
			"nftables": "iptables -I DOCKER-USER -s 192.168.0.0/16 -j ACCEPT; iptables -I DOCKER-USER -d 192.168.0.0/16 -j ACCEPT\n" + dockerServes,
			"iptables": dockerServes,
		},
		denies: true, serves: true,
	},
}

const (
	firewalldAdmits = `firewall-cmd --permanent --zone=public --add-port=179/tcp --add-port=4789/udp
		firewall-cmd --permanent --zone=trusted --add-source=192.168.0.0/16
		firewall-cmd --reload`
	ufwAdmits = `ufw allow 179/tcp; ufw allow 4789/udp; ufw route deny proto tcp from any to any port 7203
		`
	// The image is empty: the container has the machine's programs.
	dockerServes = `iptables -I DOCKER-USER -p tcp --dport 7203 -j DROP
		mkdir /run/root; for d in bin lib lib64; do ln -s usr/$d /run/root/$d; done; tar -C /run/root -c . | docker import - empty
		docker run -d --restart always --stop-signal KILL --name web -p 8888:80 -v /usr:/usr:ro empty /usr/bin/python3 -m http.server 80`
)

// private gives a node a directory of its own that has in it what the machine's has.
func private(dir string) string {
	return strings.ReplaceAll(`mkdir -p /run/own; mount -t tmpfs own /run/own; mkdir /run/own/upper /run/own/work
		mount -t overlay -o lowerdir=DIR,upperdir=/run/own/upper,workdir=/run/own/work own DIR
		`, "DIR", dir)
}

// TestBesideOtherFirewalls: next to firewalld, ufw and docker as Debian has them, whoever starts first, what policy allows
// passes and what it denies does not, also while they reload; their rules are what they are without us, and hold; and what is
// taken from ours comes back.
func TestBesideOtherFirewalls(t *testing.T) {
	for driver, mode := range ruleDrivers {
		t.Run(driver, func(t *testing.T) {
			c := upBeside(t, "beside-"+driver)
			c.useRules(t, mode)
			for _, n := range neighbours {
				t.Run(n.name, func(t *testing.T) {
					b := &beside{cluster: c, them: n}
					b.liveBeside(t, driver)
				})
			}
		})
	}
}

// upBeside brings up a cluster with a pod on each node, and servers in all of them.
func upBeside(t *testing.T, name string) *cluster {
	t.Helper()
	c := up(t, name, lab.ModeVXLAN, func(topology *lab.Topology) {
		topology.Pods = append(topology.Pods, lab.Pod{Name: plainPod, Namespace: "default", Node: "master"})
	})
	for _, pod := range []string{plainPod, "pod-1", "pod-2", "pod-3"} {
		for _, port := range []uint16{bothAllow, ingressDenies, egressDenies, othersDeny} {
			c.greet(t, pod, port)
		}
	}
	c.apply(t, besidePolicy)
	return c
}

// greet has a pod or node listen until the test ends.
func (c *cluster) greet(t *testing.T, where string, port uint16) {
	t.Helper()
	l, err := c.Listen(within(t, patience), where, netip.AddrPortFrom(netip.IPv4Unspecified(), port))
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_ = conn.Close()
		}
	}()
}

// attempt is a connection that somebody may make, or not.
type attempt struct {
	from string
	to   netip.AddrPort
	want bool
	why  string
}

// hold requires that attempts end as they should: what shall be possible in time, what shall not now.
func (c *cluster) hold(t *testing.T, when string, attempts ...attempt) {
	t.Helper()
	var all sync.WaitGroup
	for _, a := range attempts {
		connects := func() bool {
			ctx, cancel := context.WithTimeout(t.Context(), bound(700*time.Millisecond))
			defer cancel()
			conn, err := c.Dial(ctx, a.from, a.to)
			if err == nil {
				_ = conn.Close()
			}
			return err == nil
		}
		all.Go(func() {
			for end := time.Now().Add(patience); a.want && !connects(); {
				if time.Now().After(end) || t.Context().Err() != nil {
					assert.Failf(t, "what should pass does not", "%s: %s to %s: %s", when, a.from, a.to, a.why)
					return
				}
			}
			if !a.want {
				assert.False(t, connects(), "%s: %s to %s: %s", when, a.from, a.to, a.why)
			}
		})
	}
	all.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

// rulesOfOthers prints all rules of a node but ours, without counters; rulesOfOurs prints ours, and removeOurs removes them. In which
// order things were made is no matter.
const (
	saved = `for p in iptables-nft ip6tables-nft iptables-legacy ip6tables-legacy; do
		$p-save 2>/dev/null | awk -v p=$p '/^#/ || /^COMMIT/ { next } /^\*/ { t = $0; next } /^:[A-Z]+ ACCEPT/ { next } { sub(/ \[[0-9]+:[0-9]+\]$/, ""); print p, t, $0 }'
	done; `
	rulesOfOthers = `(
		(` + saved + `) | sed '/cali/d'
		nft list tables | sed -E '/ip6? (filter|nat|mangle|raw|security|calico)$/d; / netdev calico$/d' | while read -r _ family table; do nft -s list table $family $table; done
		ipset save | sed '/cali/d; s/ hashsize [0-9]*//; s/ initval [^ ]*//'
		[ ! -e /proc/net/ip_vs ] || awk '{ print $1, $2, $3, $4 }' /proc/net/ip_vs
	) | sort`
	rulesOfOurs = `((` + saved + `) | sed -n '/cali/p'; nft list tables | sed -n '/ calico$/p' | while read -r _ family table; do nft -s list table $family $table; done) | sort`
	removeOurs  = `for p in iptables-nft ip6tables-nft iptables-legacy ip6tables-legacy; do
			if $p-save 2>/dev/null | grep -q cali; then $p-save 2>/dev/null | sed '/cali/d' | $p-restore; fi
		done
		nft list tables | sed -n '/ calico$/p' | while read -r _ family table; do nft delete table $family $table; done`
	removeSets = `
		for s in $(ipset list -n | sed -n /^cali/p); do ipset destroy $s; done`
	// removeAll takes all that felix programs from a node's kernel, but for the interfaces of pods.
	removeAll = removeOurs + removeSets + `
		ip route flush proto 80
		ip -6 route flush proto 80
		tc qdisc del dev ens5 clsact 2>/dev/null || true
		for dev in tunl0 vxlan.calico vxlan-v6.calico; do ip link del $dev 2>/dev/null || ip link set $dev down 2>/dev/null || true; done`
)

// rulesOfOthers are the rules of a node that are not ours, once they do not change any more.
func (c *cluster) rulesOfOthers(t *testing.T, node string) (rules string) {
	t.Helper()
	since := time.Now()
	eventually(t, patience, func() string {
		now := c.sh(t, node, rulesOfOthers)
		if now != rules || now == "" {
			rules, since = now, time.Now()
		}
		if time.Since(since) < time.Second {
			return "the rules of others still change"
		}
		return ""
	})
	return rules
}

// beside is a node on which another firewall is, too.
type beside struct {
	*cluster
	them neighbour
	runs *daemon
}

func (b *beside) liveBeside(t *testing.T, driver string) {
	v := victim{b.them.node, lab.ProcessFelix}
	b.sh(t, b.them.node, b.them.setUp)
	if !b.them.serves {
		b.greet(t, b.them.node, hostPort)
	}

	b.kill(t, v)
	b.sh(t, b.them.node, removeOurs+"\n"+b.them.fresh)
	b.begin(t)
	defer b.finish(t)
	b.sh(t, b.them.node, b.them.admit[driver])
	theirs := b.rulesOfOthers(t, b.them.node)
	b.hold(t, "without us", attempt{"master", b.own(t), b.them.serves, "what they are there for"})
	b.start(t, v)
	b.awaitReady(t, b.them.node)
	b.bothHold(t, theirs, "they were first")

	forbidden := b.tryForbidden(t, [][2]string{{plainPod, b.them.pod}, {b.them.pod, plainPod}})
	b.finish(t)
	b.begin(t)
	b.bothHold(t, theirs, "we were first")
	if b.them.reload == "" {
		b.finish(t)
		b.begin(t)
	} else {
		b.sh(t, b.them.node, b.them.reload)
	}
	b.bothHold(t, theirs, "they have reloaded")
	assert.Positive(t, forbidden.packets.Load())
	assert.Empty(t, forbidden.leaks(), "what policy never allows has passed")

	ours := b.sh(t, b.them.node, rulesOfOurs)
	require.NotEmpty(t, ours)
	b.sh(t, b.them.node, removeOurs)
	took := eventually(t, patience, func() string {
		if now := b.sh(t, b.them.node, rulesOfOurs); now != ours {
			return "ours are not what they were:\n" + now
		}
		return ""
	})
	t.Logf("ours were back %v after they were removed", took.Round(time.Millisecond))
	b.bothHold(t, theirs, "ours were removed")
}

// begin starts the other firewall and waits for it.
func (b *beside) begin(t *testing.T) {
	t.Helper()
	if b.them.start != "" {
		b.sh(t, b.them.node, b.them.start)
	} else {
		b.runs = b.daemon(b.them.node, b.them.daemon...)
	}
	eventually(t, patience, func() string {
		if code, said := b.try(t, b.them.node, "sh", "-c", b.them.ready); code != 0 {
			return b.them.name + " is not there: " + said
		}
		return ""
	})
}

// finish ends it.
func (b *beside) finish(t *testing.T) {
	t.Helper()
	if b.them.stop != "" {
		b.sh(t, b.them.node, b.them.stop)
	} else {
		b.runs.end(t, b.them.name, syscall.SIGTERM)
	}
}

func (b *beside) own(t *testing.T) netip.AddrPort {
	return netip.AddrPortFrom(b.node(t, b.them.node).Addresses[0], hostPort)
}

// bothHold requires that our rules and theirs are in force, and theirs what they were.
func (b *beside) bothHold(t *testing.T, theirs, when string) {
	t.Helper()
	at := func(pod string, port uint16) netip.AddrPort { return netip.AddrPortFrom(b.address(t, pod), port) }
	b.hold(t, when,
		attempt{b.them.pod, at(plainPod, bothAllow), true, "allowed"},
		attempt{plainPod, at(b.them.pod, bothAllow), true, "allowed"},
		attempt{plainPod, at(b.them.pod, ingressDenies), false, "denied by ingress policy"},
		attempt{b.them.pod, at(plainPod, egressDenies), false, "denied by egress policy"},
		attempt{plainPod, at(b.them.pod, othersDeny), !b.them.denies, "what " + b.them.name + " denies, and policy allows"},
		attempt{"master", b.own(t), b.them.serves, "what they are there for"},
	)
	eventually(t, patience, func() string {
		return difference(theirs, b.sh(t, b.them.node, rulesOfOthers))
	})
}

// difference tells the first line in which texts differ.
func difference(want, got string) string {
	if want == got {
		return ""
	}
	a, b := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return fmt.Sprintf("line %d was %q, and is %q", i, a[i], b[i])
		}
	}
	return fmt.Sprintf("there were %d lines, and are %d", len(a), len(b))
}
