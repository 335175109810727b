//go:build lab

package suite

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/integration/lab"
)

// The machines of the topology with a ToR that are not nodes of the cluster.
const (
	theToR    = "router" // the gateway of both racks
	theClient = "client" // behind the ToR
)

// secretsDir is on the node that runs typha.
const secretsDir = "/etc/calico/secrets"

// secret stores a password, as an operator does who has no Kubernetes.
func (c *cluster) secret(t *testing.T, name, key, password string) {
	t.Helper()
	at := secretsDir + "/" + name
	c.sh(t, "master", "mkdir -p "+at+" && printf %s '"+password+"' >"+at+"/."+key+" && mv "+at+"/."+key+" "+at+"/"+key)
}

// outside is where the client is, by family.
var outside = map[bool]netip.Prefix{false: netip.MustParsePrefix("10.30.9.0/24"), true: netip.MustParsePrefix("fd00:39::/64")}

// upRack brings the cluster up that has a ToR for its router, in direct mode and with the mesh. The ToR runs nothing yet.
// Passwords are files in the directory secrets of its first node.
func upRack(t *testing.T, name string, changes ...func(*lab.Topology)) *cluster {
	t.Helper()
	topology, err := lab.ToRTopology()
	require.NoError(t, err)
	topology.Nodes[0].Env = map[string]string{"TYPHA_SECRETSDIR": secretsDir}
	for _, change := range changes {
		change(&topology)
	}
	c := launch(t, name, topology)
	c.mode = lab.ModeDirect
	return c
}

// eachVendor runs a test against each vendor's daemon, each on a cluster of its own.
func eachVendor(t *testing.T, run func(t *testing.T, c *cluster, v vendor)) {
	for _, v := range vendors {
		t.Run(string(v), func(t *testing.T) {
			t.Parallel()
			name, _, _ := strings.Cut(strings.TrimPrefix(t.Name(), "Test"), "/")
			run(t, upRack(t, strings.ToLower("suite-"+name+"-"+string(v))), v)
		})
	}
}

// example is a block of docs/bgp.md, by the name that stands above it there.
func example(t *testing.T, name string) string {
	t.Helper()
	page, err := os.ReadFile("../../docs/bgp.md")
	require.NoError(t, err)
	_, rest, ok := strings.Cut(string(page), "<!-- example: "+name+" -->\n")
	require.True(t, ok, "docs/bgp.md has no example %s", name)
	_, rest, _ = strings.Cut(rest, "\n") // the line that opens the block
	block, _, ok := strings.Cut(rest, "\n```")
	require.True(t, ok)
	return block + "\n"
}

// remove deletes all peerings and filters, and goes back to the defaults of BGP.
func (c *cluster) remove(t *testing.T) {
	t.Helper()
	for _, kind := range []string{"bgppeers", "bgpfilters", "bgpconfigurations"} {
		names := strings.Fields(c.run(t, "master", "calicoctl", "get", kind, "-o", "custom-columns=NAME"))
		for _, name := range names[1:] { // below the title
			c.run(t, "master", "calicoctl", "delete", kind, name)
		}
	}
}

// peering is a BGPPeer of the nodes that a selector picks, with more fields of its spec.
func peering(name, nodes, peer string, as uint32, more ...string) string {
	spec := []string{"nodeSelector: " + nodes, fmt.Sprintf("peerIP: %q", peer), fmt.Sprintf("asNumber: %d", as)}
	return fmt.Sprintf("---\napiVersion: projectcalico.org/v3\nkind: BGPPeer\nmetadata: {name: %s}\nspec: {%s}\n",
		name, strings.Join(append(spec, more...), ", "))
}

// peerings are those of both racks with the ToR in both families.
func peerings(as uint32, more ...string) string {
	return peering("left4", "rack == 'left'", "10.30.0.1", as, more...) + peering("left6", "rack == 'left'", "fd00:30::1", as, more...) +
		peering("right4", "rack == 'right'", "10.30.1.1", as, more...) + peering("right6", "rack == 'right'", "fd00:31::1", as, more...)
}

// bgpConfiguration is the one of all nodes.
func bgpConfiguration(spec string) string {
	return "---\napiVersion: projectcalico.org/v3\nkind: BGPConfiguration\nmetadata: {name: default}\nspec: {" + spec + "}\n"
}

// ownRoutes is the filter of docs/bgp.md that keeps a node from telling what it has heard of others.
const ownRoutes = `---
apiVersion: projectcalico.org/v3
kind: BGPFilter
metadata: {name: own-routes}
spec: {exportV4: [{source: RemotePeers, action: Reject}], exportV6: [{source: RemotePeers, action: Reject}]}
`

// sessions are what a node says of its sessions: state and reason, by peer.
func (c *cluster) sessions(t *testing.T, node string) map[string]string {
	t.Helper()
	out, err := c.Run(within(t, patience), node, "calicoctl", "node", "status")
	list := map[string]string{}
	if err != nil {
		return list
	}
	for line := range strings.SplitSeq(out, "\n") {
		if cells := strings.Split(line, "|"); len(cells) > 5 {
			if info := strings.TrimSpace(cells[5]); !strings.HasPrefix(info, "Down: the address is ") { // of another peering
				list[strings.TrimSpace(cells[1])] = info
			}
		}
	}
	return list
}

// awaitUp waits until a node has sessions with these peers.
func (c *cluster) awaitUp(t *testing.T, node string, peers ...string) {
	t.Helper()
	eventually(t, patience, func() string {
		got := c.sessions(t, node)
		for _, p := range peers {
			if got[p] != "Established" {
				return fmt.Sprintf("%s has no session with %s: %v", node, p, got)
			}
		}
		return ""
	})
}

// awaitDown waits until a node says that a session is not up, and why, with these words in lower case.
func (c *cluster) awaitDown(t *testing.T, node, peer string, words ...string) {
	t.Helper()
	eventually(t, patience, func() string {
		got, known := c.sessions(t, node)[peer]
		for _, w := range words {
			if !strings.Contains(strings.ToLower(got), w) {
				return fmt.Sprintf("%s says of %s: %q, not %q", node, peer, got, w)
			}
		}
		if !known || got == "Established" {
			return fmt.Sprintf("%s says of %s: %q", node, peer, got)
		}
		t.Logf("%s says of %s: %s", node, peer, got)
		return ""
	})
}

// awaitCondition waits until the condition of a node's BGP sessions has a status, and these words.
func (c *cluster) awaitCondition(t *testing.T, node, status string, words ...string) {
	t.Helper()
	eventually(t, patience, func() string {
		var got api.Node
		text := c.run(t, "master", "calicoctl", "get", "node", node, "-o", "json")
		require.NoError(t, json.Unmarshal([]byte(text), &got))
		said := meta.FindStatusCondition(got.Status.Conditions, api.ConditionBGPPeersReady)
		if said == nil || string(said.Status) != status {
			return fmt.Sprintf("%s is said to be %+v, not %s", node, said, status)
		}
		for _, w := range words {
			if !strings.Contains(said.Reason+": "+said.Message, w) {
				return fmt.Sprintf("%s is said to be %+v, not %q", node, said, w)
			}
		}
		t.Logf("%s: %s %s: %s", node, said.Type, said.Status, said.Message)
		return ""
	})
}

// awaitToR waits until all nodes have their sessions with the ToR, in both families.
func (c *cluster) awaitToR(t *testing.T) {
	t.Helper()
	for _, node := range []string{"master", "worker-1", "worker-2"} {
		c.awaitUp(t, node, "10.30.0.1", "fd00:30::1")
	}
	c.awaitUp(t, "worker-3", "10.30.1.1", "fd00:31::1")
}

// node is one of the topology.
func (c *cluster) node(t *testing.T, name string) lab.Node {
	t.Helper()
	i := slices.IndexFunc(c.topology.Nodes, func(n lab.Node) bool { return n.Name == name })
	require.GreaterOrEqual(t, i, 0, name)
	return c.topology.Nodes[i]
}

// blockOf is the block of a pod's address.
func blockOf(p lab.PodStatus, v6 bool) netip.Prefix {
	bits := 26
	if v6 {
		bits = 122
	}
	prefix, _ := firstOf(p, v6).Prefix(bits)
	return prefix
}

// awaitPaths waits until a router has exactly these paths to a prefix.
func (r *router) awaitPaths(t *testing.T, prefix netip.Prefix, want ...path) {
	t.Helper()
	eventually(t, patience, func() string {
		if got := r.paths(t, prefix); !slices.Equal(got, want) {
			return fmt.Sprintf("%s has %s as %+v, not as %+v", r.vendor, prefix, got, want)
		}
		return ""
	})
}

// awaitHops waits until a router has exactly these next hops for a prefix.
func (r *router) awaitHops(t *testing.T, prefix netip.Prefix, hops ...string) {
	t.Helper()
	slices.Sort(hops)
	eventually(t, patience, func() string {
		got := nextHops(r.paths(t, prefix))
		slices.Sort(got)
		if !slices.Equal(got, hops) {
			return fmt.Sprintf("%s has %s by %v, not by %v", r.vendor, prefix, got, hops)
		}
		return ""
	})
}

// awaitRoute waits until a machine's kernel has a route to exactly this prefix by all of these gateways, and no other.
func (c *cluster) awaitRoute(t *testing.T, where string, prefix netip.Prefix, gateways ...string) {
	t.Helper()
	slices.Sort(gateways)
	eventually(t, patience, func() string {
		got, text := c.gateways(t, where, prefix)
		if !slices.Equal(got, gateways) {
			return fmt.Sprintf("%s has %s by %v, not by %v: %s", where, prefix, got, gateways, text)
		}
		return ""
	})
}

var via = regexp.MustCompile(`via (\S+)`)

// gateways are those of a kernel's route to exactly this prefix, sorted.
func (c *cluster) gateways(t *testing.T, where string, prefix netip.Prefix) (list []string, text string) {
	t.Helper()
	family := "-4"
	if prefix.Addr().Is6() {
		family = "-6"
	}
	text = c.run(t, where, "ip", family, "route", "show", "exact", prefix.String())
	for _, m := range via.FindAllStringSubmatch(text, -1) {
		list = append(list, m[1])
	}
	slices.Sort(list)
	return list, text
}

// reaches requires that one packet and its answer get through.
func (c *cluster) reaches(t *testing.T, from string, to netip.Addr) {
	t.Helper()
	eventually(t, patience, func() string {
		if _, err := c.Run(within(t, patience), from, "ping", "-c", "1", "-W", "1", to.String()); err != nil {
			return err.Error() + "\n" + c.tables(t, to.Is6())
		}
		return ""
	})
}

// tables are the routes and neighbours of the router and of all nodes, for people.
func (c *cluster) tables(t *testing.T, v6 bool) string {
	t.Helper()
	family := "-4"
	if v6 {
		family = "-6"
	}
	var text strings.Builder
	places := []string{theToR, theClient}
	for _, n := range c.topology.Nodes {
		places = append(places, n.Name)
	}
	for _, where := range places {
		out, err := c.Run(within(t, patience), where, "sh", "-c", "ip "+family+" route; ip "+family+" neigh; ip "+family+" -o addr show tentative")
		if err != nil { // not every cluster has a router
			out = err.Error() + "\n"
		}
		fmt.Fprintf(&text, "%s:\n%s", where, out)
	}
	return text.String()
}

// reachesAll requires that a machine or pod reaches all pods in both families.
func (c *cluster) reachesAll(t *testing.T, from string) {
	t.Helper()
	st, err := c.Status(within(t, patience))
	require.NoError(t, err)
	for _, p := range st.Pods {
		for _, a := range p.Addresses {
			c.reaches(t, from, a)
		}
	}
}

// beats are packets that go from a machine to an address and back without a pause.
type beats struct {
	from string
	to   netip.Addr

	mu       sync.Mutex
	answers  int
	awaited  map[string]bool // packets, by number, that had no answer when the next one went
	rejected int             // packets that somebody on the way said cannot be delivered
}

// beat is the time between two packets.
const beat = 5 * time.Millisecond

// beats begins to send, and returns when answers come.
func (c *cluster) beats(t *testing.T, from string, to netip.Addr) *beats {
	t.Helper()
	c.reaches(t, from, to)
	s := &beats{from: from, to: to, awaited: map[string]bool{}}
	c.follow(t, from, s.take, "ping", "-O", "-n", "-i", fmt.Sprint(beat.Seconds()), to.String())
	s.goOn(t)
	return s
}

var numbered = regexp.MustCompile(`icmp_seq=(\d+)(.*)`)

func (s *beats) take(line string) {
	m := numbered.FindStringSubmatch(line)
	if m == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case strings.HasPrefix(line, "no answer yet"):
		s.awaited[m[1]] = true
	case strings.Contains(m[2], "ttl="):
		s.answers++
		delete(s.awaited, m[1])
	default:
		s.rejected++
	}
}

// goOn requires that answers come now.
func (s *beats) goOn(t *testing.T) {
	t.Helper()
	before, _ := s.look()
	eventually(t, patience, func() string {
		if now, lost := s.look(); now < before+20 {
			return fmt.Sprintf("packets from %s to %s are not answered: %d were, %d were not", s.from, s.to, now, lost)
		}
		return ""
	})
}

func (s *beats) look() (answers, lost int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.answers, len(s.awaited) + s.rejected
}

// lostNone requires that each packet so far was answered, be it late.
func (s *beats) lostNone(t *testing.T, when string) {
	t.Helper()
	s.goOn(t)
	eventually(t, patience, func() string {
		if _, lost := s.look(); lost > 0 {
			return fmt.Sprintf("%d packets from %s to %s were lost: %s", lost, s.from, s.to, when)
		}
		return ""
	})
	answers, _ := s.look()
	t.Logf("%s: %d packets from %s to %s answered, none lost", when, answers, s.from, s.to)
}

// calicoctl runs a command that may fail, and returns all that it said.
func (c *cluster) calicoctl(t *testing.T, stdin string, args ...string) (said string, ok bool) {
	t.Helper()
	var out bytes.Buffer
	code, err := c.Exec(within(t, patience), "master", lab.Command{
		Args: append([]string{"calicoctl"}, args...), Stdin: strings.NewReader(stdin), Stdout: &out, Stderr: &out,
	})
	require.NoError(t, err)
	return out.String(), code == 0
}
