//go:build lab

package suite

import (
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/integration/lab"
	"github.com/muslin-net/muslin/integration/process"
	"github.com/muslin-net/muslin/integration/storm/slope"
)

// envLeakWatch says for how long each driver is watched for leaks, if not for leakWatch.
const (
	envLeakWatch = "MUSLIN_LEAK_WATCH"
	leakWatch    = 10 * time.Minute
)

// The pace of what goes on meanwhile. It leaves the machine to others, which takes as long to show a leak as haste does: in both cases
// some thousand pods.
const (
	leakRest    = 500 * time.Millisecond // of each node's runtime, after each pod that it adds or deletes
	leakChanges = 2 * time.Second        // between changes of policies
	leakPoints  = 100                    // measurements
)

// countCommand counts what felix has put into the kernel of a node.
const countCommand = `
echo rules $({ ` + rulesOfOurs + `; } | wc -l)
echo sets $(($(nft list sets | grep -c '	set ') + $(ipset list -n | wc -l)))
echo elements $(($(nft -s list sets | grep -o '[0-9a-f][.:][^ ,}]*' | wc -l) + $(ipset list -t | awk '/^Number of entries/ { n += $4 } END { print n + 0 }')))
echo routes $({ ip -4 route show table all; ip -6 route show table all; } | wc -l)
echo neighbours $(ip neigh show nud permanent | wc -l)
echo links $(ip -o link show | wc -l)`

// leakless is what may grow over the watch and means nothing.
var leakless = map[string]slope.Allowance{
	"process_resident_memory_bytes": {Share: 0.15, Amount: 10e6},
	"go_goroutines":                 {Share: 0.05, Amount: 10},
	"process_open_fds":              {Share: 0.05, Amount: 5},
	"rules":                         {Share: 0.05, Amount: 20},
	"sets":                          {Share: 0.05, Amount: 4},
	"elements":                      {Share: 0.05, Amount: 10},
	"routes":                        {Share: 0.05, Amount: 6},
	"neighbours":                    {Share: 0.05, Amount: 4},
	"links":                         {Share: 0.05, Amount: 3},
}

// TestLeaks: pods come and go on two nodes, and policies, sets and labels change all the time. Neither what the felixes hold nor what
// they have put into their kernels grows.
func TestLeaks(t *testing.T) {
	watch := lasting(t, envLeakWatch, leakWatch)
	for driver, mode := range ruleDrivers {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			c := up(t, "leaks-"+driver, lab.ModeVXLAN, nil)
			c.useRules(t, mode)
			c.add(t, "near", "worker-1")
			c.watchLeaks(t, watch)
		})
	}
}

// lasting is how long a test takes by the environment, or by itself.
func lasting(t *testing.T, variable string, otherwise time.Duration) time.Duration {
	t.Helper()
	text := os.Getenv(variable)
	if text == "" {
		return otherwise
	}
	d, err := time.ParseDuration(text)
	require.NoError(t, err, "%s is to be a time such as 10m", variable)
	return d
}

func (c *cluster) watchLeaks(t *testing.T, watch time.Duration) {
	nodes := []string{"worker-1", "worker-2"}
	churning := c.churnEvery(t, leakRest, nodes...)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 2))
	const policies = 8
	for i := range 2 * policies { // all of them are there, and the processes have found their size
		c.change(t, random, i%policies)
	}
	points := map[string][]slope.Point{}
	started := map[string]float64{}
	begin := time.Now()
	tick := time.NewTicker(leakChanges)
	defer tick.Stop()
	measured := time.Time{}
	for changes := 0; time.Since(begin) < watch || churning.total() <= int(watch.Seconds()); changes++ { // so few pods tell nothing
		<-tick.C
		c.change(t, random, changes%policies)
		if time.Since(measured) < watch/leakPoints {
			continue
		}
		measured = time.Now()
		at := time.Since(begin)
		for _, node := range nodes {
			held := process.Samples(c.metrics(t, node, 9099))
			if was, seen := started[node]; seen {
				require.Equal(t, was, held["process_start_time_seconds"], "felix of %s has been started anew", node)
			}
			started[node] = held["process_start_time_seconds"]
			maps.Copy(held, process.Samples(c.sh(t, node, countCommand)))
			for name := range leakless {
				require.Contains(t, held, name)
				key := node + " " + name
				points[key] = append(points[key], slope.Point{At: at, Value: held[name]})
			}
		}
	}
	churning.end()
	done := churning.total()
	t.Logf("%d pods were added or deleted in %v", done, time.Since(begin).Round(time.Second))
	for _, key := range slices.Sorted(maps.Keys(points)) {
		_, name, _ := strings.Cut(key, " ")
		trend, err := slope.Judge(key, points[key], leakless[name])
		t.Logf("%s: level %.0f, %+.0f an hour, noise %.0f, %d measurements", key, trend.Level, trend.PerHour, trend.Noise, len(points[key]))
		assert.NoError(t, err)
	}
}
