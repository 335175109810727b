//go:build lab

package suite

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/integration/lab"
)

// marker is a route that nobody needs; it shows when a watch has begun.
const marker = "203.0.113.113"

// routeWatch follows the routes of all nodes and knows for how long each was missing.
type routeWatch struct {
	pool netip.Prefix

	mu    sync.Mutex             // guards the following
	ready map[string]bool        // the marker was seen, by node
	gone  map[string]time.Time   // since when a route is missing, by node and destination
	gaps  map[string][]time.Time // pairs: gone, back
	extra map[string]bool        // routes that were not there at the beginning
}

// watchRoutes begins to watch the routes inside the pool that are there now, until the test ends.
func (c *cluster) watchRoutes(t *testing.T) *routeWatch {
	t.Helper()
	w := &routeWatch{
		pool: c.topology.Pools[0].CIDR, ready: map[string]bool{}, gone: map[string]time.Time{}, gaps: map[string][]time.Time{},
		extra: map[string]bool{},
	}
	var watching sync.WaitGroup
	t.Cleanup(watching.Wait) // the test's context has ended by then, and with it the programs
	for _, n := range c.topology.Nodes {
		watching.Go(func() {
			_, _ = c.Exec(t.Context(), n.Name, lab.Command{
				Args: []string{"ip", "-o", "-4", "monitor", "route"}, Stdout: &lines{take: func(l string) { w.take(n.Name, l) }},
			})
		})
		eventually(t, patience, func() string {
			c.sh(t, n.Name, "ip route add blackhole "+marker+"; ip route del blackhole "+marker)
			w.mu.Lock()
			defer w.mu.Unlock()
			if !w.ready[n.Name] {
				return "ip monitor shows no route of " + n.Name
			}
			return ""
		})
	}
	return w
}

// take reads one line of ip monitor.
func (w *routeWatch) take(node, line string) {
	fields := strings.Fields(line)
	deleted := len(fields) > 0 && fields[0] == "Deleted"
	if deleted {
		fields = fields[1:]
	}
	if len(fields) > 1 && slices.Contains([]string{"blackhole", "unicast", "throw", "prohibit", "unreachable"}, fields[0]) {
		fields = fields[1:]
	}
	if len(fields) == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if fields[0] == marker {
		w.ready[node] = true
		return
	}
	dst, err := netip.ParsePrefix(fields[0])
	if err != nil {
		a, err := netip.ParseAddr(fields[0])
		if err != nil {
			return
		}
		dst = netip.PrefixFrom(a, a.BitLen())
	}
	if !w.pool.Contains(dst.Addr()) {
		return
	}
	key := node + " " + dst.String()
	since, missing := w.gone[key]
	switch {
	case deleted && !missing && !w.extra[key]:
		w.gone[key] = time.Now()
	case !deleted && missing:
		w.gaps[key] = append(w.gaps[key], since, time.Now())
		delete(w.gone, key)
	case !deleted:
		w.extra[key] = w.extra[key] || dst.IsSingleIP() // of a pod that came later, and may go
	}
}

// noGap requires that no route was or is missing for longer than d, and forgets the gaps.
func (w *routeWatch) noGap(t *testing.T, d time.Duration) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	for key, at := range w.gaps {
		for i := 0; i < len(at); i += 2 {
			assert.LessOrEqual(t, at[i+1].Sub(at[i]), d, "the route %s was gone from %s", key, at[i].Format(time.StampMilli))
		}
	}
	clear(w.gaps)
	for key, since := range w.gone {
		assert.Fail(t, "a route is missing", "%s, since %s", key, since.Format(time.StampMilli))
	}
}

// lines hands each line written to it on.
type lines struct {
	take func(string)
	part []byte
}

func (l *lines) Write(b []byte) (int, error) {
	l.part = append(l.part, b...)
	for {
		line, rest, ok := bytes.Cut(l.part, []byte("\n"))
		if !ok {
			return len(b), nil
		}
		l.take(string(line))
		l.part = rest
	}
}

// TestRouteWatch: the watch that other tests rely on sees a route that goes and comes back, and one that stays away.
func TestRouteWatch(t *testing.T) {
	w := &routeWatch{
		pool: netip.MustParsePrefix("192.168.0.0/16"), ready: map[string]bool{}, gone: map[string]time.Time{},
		gaps: map[string][]time.Time{}, extra: map[string]bool{},
	}
	in := &lines{take: func(l string) { w.take("a", l) }}
	fmt.Fprint(in, "Deleted 10.0.0.0/8 via 1.2.3.4\nDeleted blackhole 192.168.1.0/26 proto 80 \nDeleted 192.168.2.0/26 via 1.2.3.4 dev ens5\nDel")
	fmt.Fprint(in, "eted unicast 192.168.3.1 dev cali1\n192.168.2.0/26 via 1.2.3.5 dev ens5\n192.168.3.9 dev cali2\nDeleted 192.168.3.9 dev cali2\n")
	var missing []string
	for key := range w.gone {
		missing = append(missing, key)
	}
	require.ElementsMatch(t, []string{"a 192.168.1.0/26", "a 192.168.3.1/32"}, missing)
	require.Len(t, w.gaps["a 192.168.2.0/26"], 2)
}
