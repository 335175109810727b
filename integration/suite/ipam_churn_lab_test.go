//go:build lab

package suite

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/muslin-net/muslin/integration/lab"
	"github.com/muslin-net/muslin/ipam/lease"
)

// churned is how many pods are added or deleted.
const churned = 2000

// How many processes of each kind are killed at least, and how many pods a node starts at least while etcd is away, if it has so
// many addresses.
const (
	felixKills  = 20
	typhaKills  = 5
	pluginKills = 100
	warmStarts  = 5
)

// TestAddressesOutliveChurn: pods come and go on four nodes while processes are killed at random and etcd is away for a
// minute. When all is over, blocks, handles, kernels and journals say the same.
func TestAddressesOutliveChurn(t *testing.T) {
	c := up(t, "suite-leases", lab.ModeDirect, onEtcd)
	nodes := []string{"master", "worker-1", "worker-2", "worker-3"}
	store := c.etcdClient(t)
	plugins := c.mortalPlugins(t, nodes)
	churning := c.churn(t, nodes...)

	var felixes, typhas atomic.Int64
	over := make(chan struct{})
	done := make(chan struct{})
	go func() { // each is started again at once
		defer close(done)
		for i := 1; ; i++ {
			v, kills := victim{nodes[rand.IntN(len(nodes))], lab.ProcessFelix}, &felixes
			if i%5 == 0 {
				v, kills = typha, &typhas
			}
			select {
			case <-over:
				return
			case <-time.After(time.Duration(500+rand.IntN(1500)) * time.Millisecond): // the pace of the trouble; nothing waits for it
			}
			if !assert.NoError(t, c.Kill(t.Context(), v.node, v.process)) || !assert.NoError(t, c.Start(t.Context(), v.node, v.process)) {
				return
			}
			kills.Add(1)
		}
	}()
	churning.awaitTotal(t, churned/2)
	c.kill(t, etcd)
	before, atLeast := churning.came(), map[string]int{}
	for _, node := range nodes { // a node may just have used up what it had, and asked for more
		atLeast[node] = min(warmStarts, c.reserve(t, node))
	}
	time.Sleep(time.Minute) // as long as it is to be away
	meanwhile := churning.came()
	stand := map[string]string{}
	for _, node := range nodes {
		stand[node] = fmt.Sprintf("addresses are %s; at last %v", c.phases(t, node), churning.lastFailure(node))
	}
	c.start(t, etcd)
	churning.awaitTotal(t, churned)
	eventually(t, 2*patience, func() string {
		if f, ty, p := felixes.Load(), typhas.Load(), plugins.killed(t); f < felixKills || ty < typhaKills || p < pluginKills {
			return fmt.Sprintf("killed were %d felixes, %d typhas and %d plugins; %d, %d and %d are to be", f, ty, p, felixKills, typhaKills, pluginKills)
		}
		return ""
	})
	close(over)
	<-done
	plugins.heal(t)
	churning.end()
	t.Logf("%d pods were added or deleted; killed were %d felixes, %d typhas, and %d plugins in the middle of a call",
		churning.total(), felixes.Load(), typhas.Load(), plugins.killed(t))
	all := 0
	for _, node := range nodes {
		n := meanwhile[node] - before[node]
		t.Logf("%s: %d pods were started while etcd was away, with at least %d addresses in reserve; %s", node, n, atLeast[node], stand[node])
		all += n
		assert.GreaterOrEqual(t, n, atLeast[node], "pods that %s started while etcd was away; %s", node, stand[node])
	}
	assert.GreaterOrEqual(t, all, warmStarts*len(nodes), "pods that all started")

	for _, node := range nodes {
		c.awaitReady(t, node)
	}
	c.awaitStored(t)
	c.reachable(t)
	eventually(t, 2*patience, func() string { return c.disagreement(t, nodes, store) })
	after := c.stored(t, store).surplus()
	t.Logf("handles count %d addresses too many", after)
	for _, name := range churning.left(t, c) {
		c.del(t, name)
	}
	c.awaitStored(t)
	eventually(t, 2*patience, func() string { return c.disagreement(t, nodes, store) })
	require.LessOrEqual(t, c.stored(t, store).surplus(), after, "nothing counts too much but what somebody left who was killed")

	// A handle that a killed typha left without an address is removed by the report that names it, and nothing is wrong then.
	c.sh(t, "master", "calicoctl ipam check -o /run/calico/report.json; calicoctl ipam release --force --from-report /run/calico/report.json")
	found := c.run(t, "master", "calicoctl", "ipam", "check", "--show-problem-ips")
	require.Contains(t, found, "Check complete; found 0 problems.")
	require.Empty(t, c.disagreement(t, nodes, store))
}

// mortalPlugins are CNI plugins of which one in five is killed soon after its start.
type mortalPlugins []string // their directories

// mortalPlugin runs the plugin, or kills it within 30 ms, and notes that: it is as random as the numbers of processes.
const mortalPlugin = `#!/bin/sh
[ $(($$ % 5)) -ne 0 ] && exec /opt/cni/bin/calico-whole
timeout -s KILL "$(printf 0.%03d $((1 + $$ / 5 % 30)))" /opt/cni/bin/calico-whole
code=$?
[ $code -eq 137 ] && echo "$CNI_COMMAND" >>/opt/cni/bin/killed
exit $code
`

func (c *cluster) mortalPlugins(t *testing.T, nodes []string) (m mortalPlugins) {
	t.Helper()
	for _, node := range nodes {
		dir := filepath.Join(c.StateDir(), "nodes", node, "opt-cni", "bin")
		require.NoError(t, os.Rename(filepath.Join(dir, "calico"), filepath.Join(dir, "calico-whole")))
		require.NoError(t, os.WriteFile(filepath.Join(dir, "calico"), []byte(mortalPlugin), 0o755))
		m = append(m, dir)
	}
	return m
}

// heal puts the plugins back.
func (m mortalPlugins) heal(t *testing.T) {
	t.Helper()
	for _, dir := range m {
		require.NoError(t, os.Rename(filepath.Join(dir, "calico-whole"), filepath.Join(dir, "calico")))
	}
}

// killed is how many were killed before their call was over.
func (m mortalPlugins) killed(t *testing.T) (n int) {
	t.Helper()
	for _, dir := range m {
		text, err := os.ReadFile(filepath.Join(dir, "killed"))
		if !errors.Is(err, fs.ErrNotExist) {
			require.NoError(t, err)
		}
		n += strings.Count(string(text), "\n")
	}
	return n
}

// awaitTotal waits until so many pods were added or deleted, as long as it goes on.
func (ch *churn) awaitTotal(t *testing.T, n int) {
	t.Helper()
	for ch.total() < n {
		ch.awaitMore(t, 1)
	}
}

// reserve is how many addresses a node can give to pods by itself, now or when they have cooled down or come back.
func (c *cluster) reserve(t *testing.T, node string) (n int) {
	t.Helper()
	eventually(t, patience, func() string {
		s, err := c.journal(t, node)
		if err != nil {
			return err.Error() // it may be read in the middle of a write
		}
		n = 0
		for _, slot := range s.Slots {
			if slot.Phase == lease.Warm || slot.Phase == lease.Cooling || slot.Phase == lease.Lent {
				n++
			}
		}
		return ""
	})
	return n
}

// phases are those that a node's addresses are in, and how many in each.
func (c *cluster) phases(t *testing.T, node string) string {
	t.Helper()
	s, err := c.journal(t, node)
	if err != nil {
		return err.Error()
	}
	count := map[lease.Phase]int{}
	for _, slot := range s.Slots {
		count[slot.Phase]++
	}
	return fmt.Sprintf("%v, %d debts", count, len(s.Debts))
}

// journal reads a node's. It may be in the middle of a write, which is an error.
func (c *cluster) journal(t *testing.T, node string) (lease.State, error) {
	t.Helper()
	text, err := base64.StdEncoding.DecodeString(strings.TrimSpace(c.run(t, node, "base64", "-w0", "/var/lib/calico/felix/addresses/journal")))
	require.NoError(t, err)
	s, _, _, err := lease.Decode(text)
	return s, err
}

// disagreement tells what of the nodes' journals, their kernels, the blocks, the handles and the affinities does not fit the others.
// One thing is allowed: a handle may count too much, as one does whose write was the last of a typha or an etcd that was killed.
func (c *cluster) disagreement(t *testing.T, nodes []string, store *clientv3.Client) string {
	t.Helper()
	held := map[string]string{} // address to node
	for _, node := range nodes {
		s, err := c.journal(t, node)
		if err != nil {
			return fmt.Sprintf("the journal of %s: %v", node, err) // it may be read in the middle of a write
		}
		for a, slot := range s.Slots {
			if slot.Phase != lease.Warm && slot.Phase != lease.Cooling {
				return fmt.Sprintf("%s is %s on %s", a, slot.Phase, node)
			}
			held[a.String()] = node
		}
		for handle, debt := range s.Debts {
			if !debt.Held {
				return fmt.Sprintf("%s is still to be freed on %s", handle, node)
			}
		}
	}
	there := map[string]string{}
	found := c.run(t, "master", "calicoctl", "ipam", "check", "--show-all-ips")
	for _, m := range warmRow.FindAllStringSubmatch(found, -1) {
		there[m[1]] = m[2]
	}
	if !maps.Equal(held, there) {
		return fmt.Sprintf("the journals hold %v, and the blocks say %v", held, there)
	}
	if orphans := strings.Count(found, "doesn't have any active IPs."); !strings.Contains(found, fmt.Sprintf("Check complete; found %d problems.", orphans)) {
		return found
	}
	if wrong := c.kernelsDisagree(t, nodes); wrong != "" {
		return wrong
	}
	return c.stored(t, store).disagreement()
}

var warmRow = regexp.MustCompile(`(?m)^ +(\S+) belongs to Node\((\S+)\) warm pool`)

var podRoute = regexp.MustCompile(`(?m)^(\S+) dev (cali\S+)`)

// kernelsDisagree compares the routes to local pods and the pods' interfaces with the pods.
func (c *cluster) kernelsDisagree(t *testing.T, nodes []string) string {
	t.Helper()
	st, err := c.Status(within(t, patience))
	require.NoError(t, err)
	for _, node := range nodes {
		var want, got []string
		for _, p := range st.Pods {
			if p.Node != node {
				continue
			}
			want = append(want, p.HostInterface)
			for _, a := range p.Addresses {
				want = append(want, a.String()+" "+p.HostInterface)
			}
		}
		for _, m := range podRoute.FindAllStringSubmatch(c.sh(t, node, "ip -4 route; ip -6 route"), -1) {
			if !strings.HasPrefix(m[1], "fe80:") { // each interface has that one
				got = append(got, m[1]+" "+m[2])
			}
		}
		for line := range strings.Lines(c.run(t, node, "ip", "-br", "link")) {
			if name, _, _ := strings.Cut(strings.Fields(line)[0], "@"); strings.HasPrefix(name, "cali") {
				got = append(got, name)
			}
		}
		slices.Sort(want)
		slices.Sort(got)
		if !slices.Equal(want, got) {
			return fmt.Sprintf("the pods of %s are %v, and its kernel has %v", node, want, got)
		}
	}
	return ""
}

// storedAddresses are etcd's keys of address management.
type storedAddresses struct {
	held, counted     map[string]map[string]int // handle to block to addresses, by the blocks and by the handles
	owners, claimants map[string]string         // block to owner, by the blocks and by the affinities
}

// stored reads what etcd has, past all programs that judge it themselves.
func (c *cluster) stored(t *testing.T, store *clientv3.Client) storedAddresses {
	t.Helper()
	s := storedAddresses{map[string]map[string]int{}, map[string]map[string]int{}, map[string]string{}, map[string]string{}}
	got, err := store.Get(within(t, patience), "/calico/ipam/v2/", clientv3.WithPrefix())
	require.NoError(t, err)
	for _, kv := range got.Kvs {
		key := strings.Split(strings.TrimPrefix(string(kv.Key), "/calico/ipam/v2/"), "/")
		switch key[0] {
		case "assignment":
			var b struct {
				CIDR, Affinity string
				Allocations    []*int
				Attributes     []struct {
					Handle string `json:"handle_id"`
				}
			}
			require.NoError(t, json.Unmarshal(kv.Value, &b))
			s.owners[b.CIDR] = b.Affinity
			for _, at := range b.Allocations {
				if at != nil {
					count(s.held, b.Attributes[*at].Handle, b.CIDR, 1)
				}
			}
		case "handle":
			var h struct{ Block map[string]int }
			require.NoError(t, json.Unmarshal(kv.Value, &h))
			for cidr, n := range h.Block {
				count(s.counted, key[1], cidr, n)
			}
		case "host":
			var a struct{ State string }
			require.NoError(t, json.Unmarshal(kv.Value, &a))
			cut := strings.LastIndex(key[4], "-")
			cidr := strings.NewReplacer("-", map[string]string{"ipv4": ".", "ipv6": ":"}[key[2]]).Replace(key[4][:cut]) + "/" + key[4][cut+1:]
			s.claimants[cidr] = "host:" + key[1]
			if a.State != "confirmed" {
				s.claimants[cidr] += " (" + a.State + ")"
			}
		}
	}
	return s
}

func count(in map[string]map[string]int, handle, cidr string, n int) {
	if in[handle] == nil {
		in[handle] = map[string]int{}
	}
	in[handle][cidr] += n
}

func (s storedAddresses) disagreement() string {
	if !maps.Equal(s.owners, s.claimants) {
		return fmt.Sprintf("blocks belong to %v, and affinities say %v", s.owners, s.claimants)
	}
	for handle, blocks := range s.held {
		for cidr, n := range blocks {
			if s.counted[handle][cidr] < n {
				return fmt.Sprintf("%s has %d addresses of %s and counts %d", handle, n, cidr, s.counted[handle][cidr])
			}
		}
	}
	return ""
}

// surplus is what handles count beyond what they have.
func (s storedAddresses) surplus() (n int) {
	for handle, blocks := range s.counted {
		for cidr, counts := range blocks {
			n += counts - s.held[handle][cidr]
		}
	}
	return n
}
