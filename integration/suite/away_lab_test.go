//go:build lab

package suite

import (
	"context"
	"crypto/sha1"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/integration/lab"
)

var (
	typha = victim{"master", lab.ProcessTypha}
	felix = victim{"worker-1", lab.ProcessFelix}
	etcd  = victim{"master", lab.ProcessEtcd}
)

// TestTyphaAway: with typha down a felix that starts programs what it saved. Pods keep talking, can be deleted, and started
// with addresses that the node holds ready; those that ask for others are refused for now. All is made good when typha is
// back.
func TestTyphaAway(t *testing.T) {
	for _, mode := range []lab.Mode{lab.ModeDirect, lab.ModeVXLAN} {
		t.Run(string(mode), func(t *testing.T) {
			c := up(t, "suite-away", mode, nil)
			talks, without, watch := c.converse(t, [2]string{"pod-1", "pod-2"}, [2]string{"pod-2", "pod-1"}), c.settled(t), c.watchRoutes(t)
			leaving := c.add(t, "leaving", "worker-1")
			c.awaitStored(t)
			c.awaitSaved(t, "worker-1", "leaving")
			with := c.settled(t)

			c.kill(t, typha)
			c.kill(t, felix)
			c.sh(t, "worker-1", "ip route del "+c.address(t, "pod-1").String()+"; nft delete table ip calico; ip link del vxlan.calico || true")
			c.start(t, felix)
			c.awaitReady(t, "worker-1")
			c.awaitKernel(t, with, patience)
			talks.goOn(t, "typha is away")
			c.probe(t, "pod-2", "leaving")

			code, text := c.refusedAdd(t)
			assert.Equal(t, 11, code, "try again later")
			assert.Contains(t, text, "typha cannot be reached")
			assert.NotContains(t, text, "\n")
			c.del(t, "leaving")
			c.awaitKernel(t, without, patience)
			c.kill(t, felix) // what is to be told typha is not forgotten
			assert.Contains(t, c.sh(t, "worker-1", "grep -ao '[a-z-]*leaving' /var/lib/calico/felix/addresses/journal"), "leaving", "the address is to be freed")
			c.start(t, felix)
			c.awaitReady(t, "worker-1")
			c.awaitKernel(t, without, patience)

			c.add(t, "meanwhile", "worker-1")
			c.kill(t, felix)
			c.start(t, felix)
			c.awaitReady(t, "worker-1")

			c.start(t, typha)
			c.awaitStored(t)
			eventually(t, patience, func() string {
				r, err := c.Probe(within(t, patience), lab.ProbeRequest{From: "pod-2", To: "meanwhile"})
				if err == nil && r.OK {
					return ""
				}
				return fmt.Sprint("pod-2 does not reach the pod that was started meanwhile: ", r.Error, err)
			})
			c.del(t, "meanwhile")
			c.awaitStored(t)
			again := c.addInTime(t, "again", "worker-1")
			c.probe(t, "pod-2", "again")
			assert.NotEqual(t, leaving.ID, again.ID)
			c.del(t, "again")
			c.awaitStored(t)
			c.awaitKernel(t, without, patience)
			talks.goOn(t, "typha is back")
			watch.noGap(t, 2*longestGap) // a route that is removed by hand while nobody looks is away for longer
		})
	}
}

// awaitSaved waits until felix's saved view of a node tells of something, and of all that was programmed; it is saved within a
// second or so.
func (c *cluster) awaitSaved(t *testing.T, node, what string) string {
	t.Helper()
	var view string
	eventually(t, patience, func() string {
		if view = c.run(t, node, "cat", "/var/lib/calico/felix/view"); !strings.Contains(view, what) {
			return "the saved view of " + node + " does not tell of " + what
		}
		if strings.Contains(c.sh(t, node, "ls /run/calico"), "felix-view-unsaved") {
			return "more is programmed on " + node + " than is saved"
		}
		return ""
	})
	return view
}

// refusedAdd has the CNI plugin add an interface of another pod to pod-1, with an address that it names, which no node holds
// ready. That must fail and leave nothing. It returns the error as the runtime gets it.
func (c *cluster) refusedAdd(t *testing.T) (code int, text string) {
	t.Helper()
	const node = "worker-1"
	out := c.sh(t, node, `
export CNI_COMMAND=ADD CNI_CONTAINERID=refused CNI_NETNS=/run/netns/default-pod-1 CNI_IFNAME=eth9 CNI_PATH=/opt/cni/bin
export CNI_ARGS='IgnoreUnknown=1;IP=192.168.250.1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=refused'
! /opt/cni/bin/calico <<END
{"cniVersion": "1.0.0", "name": "k8s-pod-network", "type": "calico", "ipam": {"type": "calico-ipam", "assign_ipv4": "true"}}
END`)
	assert.NotContains(t, c.run(t, "pod-1", "ip", "-br", "link"), "eth9")
	left := "cali" + fmt.Sprintf("%x", sha1.Sum([]byte("default.refused")))[:11]
	assert.NotContains(t, c.sh(t, node, "ip -br link; ls /var/lib/calico/felix/endpoints"), left, "what failed leaves nothing")
	var said struct {
		Code         int
		Msg, Details string
	}
	require.NoError(t, json.Unmarshal([]byte(out), &said), out)
	return said.Code, said.Msg + ": " + said.Details
}

// TestDatastoreAway: etcd is killed and started while pods come and go. What was stored is there afterwards, and what was
// wanted comes about. While it is down a pod is started and deleted, and felix restarted.
func TestDatastoreAway(t *testing.T) {
	c := up(t, "suite-store", lab.ModeDirect, onEtcd)
	talks, before := c.converse(t, [2]string{"pod-1", "pod-2"}), c.settled(t)
	churning := c.churn(t, "worker-1", "worker-2", "worker-3")
	for i := range 3 {
		name := "stored-" + itoa(i)
		c.apply(t, "{apiVersion: projectcalico.org/v3, kind: GlobalNetworkSet, metadata: {name: "+name+"}, spec: {nets: [10.9."+itoa(i)+".0/24]}}")
		churning.awaitMore(t, 3)
		c.kill(t, etcd)
		code, text := c.refusedAdd(t)
		assert.Equal(t, 11, code, text)
		c.addInTime(t, "warm", "worker-1")
		talks.goOn(t, "etcd is down")
		c.kill(t, felix)
		c.start(t, felix)
		c.awaitReady(t, "worker-1")
		c.probe(t, "pod-1", "warm")
		c.del(t, "warm")
		c.addInTime(t, "warm", "worker-1") // felix knew what it had
		c.del(t, "warm")
		c.start(t, etcd)
		churning.awaitMore(t, 3)
		assert.Contains(t, c.run(t, "master", "calicoctl", "get", "globalnetworkset", name, "-o", "yaml"), "10.9."+itoa(i)+".0/24")
	}
	churning.end()
	c.awaitStored(t)
	c.reachable(t)
	for _, name := range churning.left(t, c) {
		c.del(t, name)
	}
	c.awaitStored(t)
	c.awaitKernel(t, before, patience)
	talks.wereSmooth(t, longestGap)
}

// churn is pods that come and go. What fails is tried again.
type churn struct {
	stop context.CancelFunc
	all  sync.WaitGroup

	mu     sync.Mutex
	done   int              // adds and deletions that succeeded
	adds   map[string]int   // the adds, by node
	failed map[string]error // what failed last, by node
}

// churn begins to add and delete pods on each node; some of them stay.
func (c *cluster) churn(t *testing.T, nodes ...string) *churn {
	t.Helper()
	return c.churnEvery(t, 0, nodes...)
}

// churnEvery is churn with a rest after each addition and deletion.
func (c *cluster) churnEvery(t *testing.T, rest time.Duration, nodes ...string) *churn {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	// A deletion that failed halfway is no pod any more: it is brought to its end, as a kubelet does.
	late, giveUp := context.WithCancel(context.WithoutCancel(ctx))
	ch := &churn{stop: cancel, adds: map[string]int{}, failed: map[string]error{}}
	t.Cleanup(giveUp)
	t.Cleanup(ch.end)
	context.AfterFunc(ctx, func() { time.AfterFunc(patience, giveUp) })
	for _, node := range nodes {
		ch.all.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				name := fmt.Sprintf("churn-%s-%d", node, i%8)
				work := context.WithoutCancel(ctx) // what was begun is finished
				ch.until(ctx, node, func() error {
					_, err := c.PodAdd(work, lab.Pod{Name: name, Node: node})
					if err == nil {
						ch.countAdd(node)
					}
					return err
				})
				await(ctx, rest)
				if i%8 != 7 || ctx.Err() == nil {
					ch.until(late, node, func() error { return c.PodDel(work, name) })
				}
				await(ctx, rest)
			}
		})
	}
	return ch
}

// await lets a time go by, or less if ctx ends.
func await(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

func (ch *churn) until(ctx context.Context, node string, do func() error) {
	for ctx.Err() == nil {
		err := do()
		if err == nil {
			ch.count()
			return
		}
		ch.mu.Lock()
		ch.failed[node] = fmt.Errorf("%s: %w", time.Now().UTC().Format(time.TimeOnly), err)
		ch.mu.Unlock()
	}
}

// lastFailure is what failed last on a node; nil if nothing has.
func (ch *churn) lastFailure(node string) error {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	return ch.failed[node]
}

func (ch *churn) count() {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	ch.done++
}

func (ch *churn) countAdd(node string) {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	ch.adds[node]++
}

// came is how many pods were added on each node.
func (ch *churn) came() map[string]int {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	return maps.Clone(ch.adds)
}

// total is how many pods were added or deleted.
func (ch *churn) total() int {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	return ch.done
}

// awaitMore waits until more has been done.
func (ch *churn) awaitMore(t *testing.T, n int) {
	t.Helper()
	before := ch.total()
	eventually(t, 2*patience, func() string {
		if now := ch.total(); now < before+n {
			return fmt.Sprintf("only %d pods were added or deleted", now-before)
		}
		return ""
	})
}

func (ch *churn) end() {
	ch.stop()
	ch.all.Wait()
}

// left are the pods that the churn left.
func (ch *churn) left(t *testing.T, c *cluster) (names []string) {
	t.Helper()
	st, err := c.Status(within(t, patience))
	require.NoError(t, err)
	for _, p := range st.Pods {
		if strings.HasPrefix(p.ID, "churn-") {
			names = append(names, p.ID)
		}
	}
	return names
}

var following = regexp.MustCompile(`msg="following typha".* address=(\S+) .*resumed=(\w+)`)

// TestReplicas: two typhas on one etcd. When the one that a node uses is killed, the node goes on with the other, and is sent
// only what it has not.
func TestReplicas(t *testing.T) {
	c := up(t, "suite-two", lab.ModeDirect, func(topo *lab.Topology) {
		onEtcd(topo)
		topo.Nodes[3].Processes = append(topo.Nodes[3].Processes, lab.ProcessTypha)
	})
	replicas := map[string]victim{"10.30.0.10:5473": typha, "10.30.1.66:5473": {"worker-3", lab.ProcessTypha}}
	followed := func() (times int, address, resumed string) {
		all := following.FindAllStringSubmatch(c.log(t, felix), -1)
		last := all[len(all)-1]
		return len(all), last[1], last[2]
	}
	talks, before := c.converse(t, [2]string{"pod-1", "pod-2"}), c.settled(t)
	times, address, _ := followed()
	used := replicas[address]
	require.NotEmpty(t, used, "felix follows %s", address)
	other := replicas["10.30.0.10:5473"]
	if other == used {
		other = replicas["10.30.1.66:5473"]
	}

	c.kill(t, used)
	sent := c.metric(t, other.node, "typha_items_sent_total")
	eventually(t, patience, func() string {
		if now, at, _ := followed(); now == times || at == address {
			return "felix follows nobody else"
		}
		return ""
	})
	_, _, resumed := followed()
	assert.Equal(t, "true", resumed)
	late := c.addInTime(t, "late", "worker-1")
	c.probe(t, "pod-2", "late")
	c.awaitStored(t)
	more := c.metric(t, other.node, "typha_items_sent_total") - sent
	t.Logf("the other replica sent %v items to all its clients", more)
	assert.Less(t, more, 20.0, "the new pod, and nothing that was known")
	assert.Zero(t, c.metric(t, other.node, "typha_resends_total"))
	assert.NotContains(t, c.run(t, "worker-1", "ip", "route"), "unreachable")
	assert.NotEmpty(t, late.Addresses)

	c.start(t, used)
	c.del(t, "late")
	c.awaitStored(t)
	c.awaitKernel(t, before, patience)
	talks.wereSmooth(t, longestGap)
}

// metric reads a metric of a node's typha.
func (c *cluster) metric(t *testing.T, node, name string) float64 {
	t.Helper()
	text := c.metrics(t, node, 9098)
	m := regexp.MustCompile(`(?m)^` + name + ` (\S+)$`).FindStringSubmatch(text)
	require.NotNil(t, m, "no metric %s in:\n%s", name, text)
	v, err := strconv.ParseFloat(m[1], 64)
	require.NoError(t, err)
	return v
}

// metrics are what a process shows at its port.
func (c *cluster) metrics(t *testing.T, node string, port int) string {
	t.Helper()
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, at string) (net.Conn, error) {
			return c.Dial(ctx, node, netip.MustParseAddrPort(at))
		},
	}}
	req, err := http.NewRequestWithContext(within(t, patience), http.MethodGet, "http://127.0.0.1:"+strconv.Itoa(port)+"/metrics", nil)
	require.NoError(t, err)
	resp, err := client.Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	require.Equal(t, http.StatusOK, resp.StatusCode)
	text, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return string(text)
}
