//go:build storm || secondkernel

package storm

import (
	"context"
	"flag"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/integration/storm/link"
	"github.com/muslin-net/muslin/typha/client"
)

var (
	clients = flag.Int("clients", 20, "clients, one for each node")
	program = flag.String("typha", "../../bin/typha", "the typha to try")
	length  = flag.Duration("for", 8*time.Second, "how long replicas are killed under churn")
	every   = flag.Duration("every", 2*time.Second, "how often a replica is killed")
	rate    = flag.Int("rate", 100, "changes of the datastore in a second")
	watched = flag.Duration("watch", 45*time.Second, "how long typha is watched for leaks")
	goOn    = flag.Bool("go-on", false, "go on after a storm that was not passed")
	seed    = flag.Uint64("seed", 1, "of what is changed")
)

// storms is a cluster that all storms go over, one after the other: what one of them leaves behind the next one finds.
type storms struct {
	*Cluster
	t   *testing.T
	ctx context.Context
}

// storm is one of them.
type storm struct {
	name string
	pass func(*storms)
}

func TestStorms(t *testing.T) {
	t.Parallel() // they mostly wait
	// Most nodes are only talked of.
	pass(t, Config{Clients: *clients, Size: Size{Nodes: *clients + 250, Pods: 8, Namespaces: 6, Policies: 6, Sets: 12}}, []storm{
		{"all clients come", (*storms).begin},
		{"all clients drop at once", (*storms).drop},
		{"a replica is killed", (*storms).killed},
		{"load is balanced", (*storms).balanced},
		{"rolling restart", (*storms).rolling},
		{"upgrade and rollback", (*storms).upgrade},
		{"replicas are killed again and again", (*storms).kills},
		{"etcd is frozen", (*storms).etcdFrozen},
		{"etcd is killed", (*storms).etcdKilled},
		{"etcd is compacted while a replica is away", (*storms).etcdCompacted},
		{"a replica is behind", (*storms).behind},
		{"the network is cut", (*storms).networkCut},
		{"the network is slow", (*storms).networkSlow},
		{"the network is half open", (*storms).networkHeld},
		{"one client reads a byte a second and one never acknowledges", (*storms).lazyClients},
		{"memory is limited", (*storms).memory},
		{"leaks", (*storms).leaks},
	})
}

// pass makes a cluster of three replicas and passes storms over it.
func pass(t *testing.T, cfg Config, list []storm) {
	binary, err := filepath.Abs(*program)
	require.NoError(t, err)
	require.True(t, exists(binary), "there is no %s; run make build, or give another by -args -typha", binary)
	cfg.Typha, cfg.Dir, cfg.Replicas, cfg.Seed = binary, t.TempDir(), 3, *seed
	cfg.Prepare = func(f *Follower) { client.SpeakBefore(f.client, f.before.Load) }
	cfg.Log = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelError}))
	c, err := NewCluster(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(c.logs())
			if dir := os.Getenv("STORM_LOGS"); dir != "" {
				_ = os.CopyFS(dir, os.DirFS(c.cfg.Dir))
			}
		}
		c.Close()
	})
	require.NoError(t, c.Follow())
	s := &storms{Cluster: c, ctx: t.Context()}
	for _, storm := range list {
		ok := t.Run(storm.name, func(t *testing.T) {
			s.t = t
			begin := time.Now()
			storm.pass(s)
			passed := time.Since(begin)
			s.settle()
			t.Logf("%.1f s, and %.1f s until all views were right", passed.Seconds(), (time.Since(begin) - passed).Seconds())
		})
		if !ok && !*goOn {
			return // what follows would judge the same cluster
		}
	}
}

// settle brings all replicas back and asks the judge.
func (s *storms) settle() {
	s.t.Helper()
	for _, r := range s.replicas {
		if r.PID() == 0 {
			require.NoError(s.t, r.Start())
		}
	}
	require.NoError(s.t, s.ready(s.ctx))
	require.NoError(s.t, s.synced(s.ctx))
	require.NoError(s.t, s.Settle(s.ctx))
}

// quiet waits until nothing is written any more, as of tunnel addresses and of which nodes are connected.
func (s *storms) quiet() {
	s.t.Helper()
	var last int64
	since := time.Now()
	require.NoError(s.t, s.until(s.ctx, "nothing is written any more", func() bool {
		now, err := s.etcd.revision(s.ctx)
		if err != nil || now != last {
			last, since = now, time.Now()
		}
		return time.Since(since) > 3*time.Second
	}))
	require.NoError(s.t, s.Settle(s.ctx))
}

// churning does something under churn.
func (s *storms) churning(do func()) {
	s.t.Helper()
	ctx, cancel := context.WithCancel(s.ctx)
	done := make(chan error, 1)
	go func() { done <- s.World.Churn(ctx, *rate) }()
	defer func() {
		cancel()
		assert.NoError(s.t, <-done)
	}()
	do()
}

// marks are how many streams each client had.
func (s *storms) marks() map[*Follower]int {
	out := map[*Follower]int{}
	for _, f := range s.Followers {
		out[f] = len(f.since(0))
	}
	return out
}

// pause lets things go on.
func (s *storms) pause(d time.Duration) {
	select {
	case <-s.ctx.Done():
	case <-time.After(d):
	}
}

// resumes asserts that all streams since some moment built on what the clients had, and, if nothing changed meanwhile, that they
// cost at most one in a hundred of what a whole view does.
func (s *storms) resumes(since map[*Follower]int, quiet bool) {
	s.t.Helper()
	streams, bytes, whole := 0, 0, 0
	for _, f := range s.Followers {
		first := f.snapshot()
		for _, one := range f.since(since[f]) {
			if !one.Synced {
				continue
			}
			streams++
			bytes += one.First
			whole += first
			assert.True(s.t, one.Resumed, "%s was sent its whole view by %s", f.node, one.Replica)
		}
	}
	require.Positive(s.t, streams, "no client has come back, so nothing was tried")
	s.t.Logf("%d streams resumed, %d bytes each, %.2f %% of a whole view", streams, bytes/streams, 100*float64(bytes)/float64(whole))
	if quiet {
		assert.LessOrEqual(s.t, float64(bytes), 0.01*float64(whole), "bytes of streams that resume, beside those of whole views")
	}
}

func (s *storms) begin() {
	require.NoError(s.t, s.synced(s.ctx))
	bytes := 0
	for _, f := range s.Followers {
		bytes += f.last().First
	}
	s.t.Logf("%d clients, %d bytes each; load %v", len(s.Followers), bytes/len(s.Followers), s.load())
}

func (s *storms) drop() {
	s.quiet()
	before := s.marks()
	s.network.Drop()
	s.back(before)
	s.resumes(before, true)
	s.churning(func() {
		for range 5 {
			s.network.Drop()
			s.pause(300 * time.Millisecond)
		}
	})
}

// back waits until all clients have had another stream since some moment.
func (s *storms) back(since map[*Follower]int) {
	s.t.Helper()
	require.NoError(s.t, s.until(s.ctx, "all clients are back", func() bool {
		for f, n := range since {
			if len(f.since(n)) == 0 || !f.last().Synced {
				return false
			}
		}
		return true
	}))
}

func (s *storms) killed() {
	s.quiet()
	victims := map[*Follower]int{}
	for f, n := range s.marks() {
		if s.at(f, 0) {
			victims[f] = n
		}
	}
	require.NotEmpty(s.t, victims)
	before := s.marks()
	s.replicas[0].End(syscall.SIGKILL)
	s.back(victims)
	s.resumes(before, true)
	assert.Zero(s.t, s.load()[0])
}

// at tells whether a client is at a replica.
func (s *storms) at(f *Follower, replica int) bool {
	return f.last().Replica == "passthrough:///"+s.replicas[replica].address || f.last().Replica == s.replicas[replica].address
}

func (s *storms) balanced() {
	// The replica that was killed is back, and nobody has a reason to go there but load.
	most := len(s.Followers)*11/10/len(s.replicas) + 2
	require.NoError(s.t, s.until(s.ctx, "clients are spread", func() bool {
		return slices.Max(s.load()) <= most
	}), "load %v", s.load())
	s.t.Logf("load %v", s.load())
}

func (s *storms) rolling() {
	before := s.marks()
	s.churning(func() {
		for _, r := range s.replicas {
			r.End(syscall.SIGTERM)
			require.NoError(s.t, r.Start())
			require.NoError(s.t, s.ready(s.ctx))
		}
	})
	require.NoError(s.t, s.synced(s.ctx))
	s.resumes(before, false)
	// A client that is sent away goes to another replica at once; it never finds nobody.
	for f, n := range before {
		for _, one := range f.since(n) {
			assert.True(s.t, one.Synced, "%s met %s in vain", f.node, one.Replica)
		}
	}
}

func (s *storms) kills() {
	before := s.marks()
	kills := 0
	s.churning(func() {
		for begin := time.Now(); time.Since(begin) < *length; kills++ {
			r := s.replicas[kills%len(s.replicas)]
			r.End(syscall.SIGKILL)
			require.NoError(s.t, r.Start())
			s.pause(*every)
		}
	})
	s.t.Logf("%d kills", kills)
	require.NoError(s.t, s.ready(s.ctx))
	require.NoError(s.t, s.synced(s.ctx))
	s.resumes(before, false)
}

// told waits until a replica's readiness page and metrics tell of a trouble.
func (s *storms) told(r *Replica, metric, page string) {
	s.t.Helper()
	require.NoError(s.t, s.until(s.ctx, r.Name+" tells of "+metric, func() bool { return r.metrics(s.ctx)[metric] > 0 }))
	require.NoError(s.t, s.until(s.ctx, r.Name+" says "+page, func() bool {
		text, _, err := ask(s.ctx, r.health, "/readiness")
		return err == nil && contains(text, page)
	}))
}

const unreachable = `typha_unreadable_kinds{reason="Unreachable"}`

func (s *storms) etcdFrozen() {
	before := s.marks()
	s.churning(func() {
		s.pause(time.Second)
		require.True(s.t, s.etcd.Signal(syscall.SIGSTOP))
		for _, r := range s.replicas {
			s.told(r, unreachable, "Unreachable")
		}
		require.True(s.t, s.etcd.Signal(syscall.SIGCONT))
		for _, r := range s.replicas {
			require.NoError(s.t, s.until(s.ctx, r.Name+" reads again", func() bool { v, ok := r.metrics(s.ctx)[unreachable]; return ok && v == 0 }))
		}
		s.pause(time.Second)
	})
	for f, n := range before {
		assert.Zero(s.t, f.broken(n), "%s lost its stream over etcd's trouble", f.node)
	}
}

func (s *storms) etcdKilled() {
	s.churning(func() {
		s.pause(time.Second)
		s.etcd.End(syscall.SIGKILL)
		s.told(s.replicas[0], unreachable, "Unreachable")
		require.NoError(s.t, s.etcd.Start())
		s.pause(2 * time.Second)
	})
}

func (s *storms) etcdCompacted() {
	r := s.replicas[1]
	s.churning(func() {
		r.toEtcd.Set(link.State{Cut: true})
		s.told(r, unreachable, "Unreachable")
		s.pause(2 * time.Second)
		revision, err := s.etcd.revision(s.ctx)
		require.NoError(s.t, err)
		require.NoError(s.t, s.etcd.compact(s.ctx, revision))
		r.toEtcd.Set(link.State{})
		s.pause(time.Second)
	})
}

func (s *storms) behind() {
	late := s.replicas[2]
	s.churning(func() {
		late.toEtcd.Set(link.State{Held: true})
		s.pause(3 * time.Second) // all others go on
		s.replicas[0].End(syscall.SIGKILL)
		s.replicas[1].End(syscall.SIGKILL)
		// Now all clients want the one that is behind. It must not take those that know more than it does.
		refused := `typha_calls_total{code="FailedPrecondition",method="/muslin.typha.v1.SyncService/Sync"}`
		require.NoError(s.t, s.until(s.ctx, "clients are refused", func() bool { return late.metrics(s.ctx)[refused] > 0 }), "%v", late.metrics(s.ctx))
		require.NoError(s.t, s.replicas[0].Start())
		require.NoError(s.t, s.replicas[1].Start())
		require.NoError(s.t, s.ready(s.ctx))
	})
	late.toEtcd.Set(link.State{})
}

func (s *storms) networkCut() {
	s.churning(func() {
		s.network.Set(link.State{Cut: true})
		require.NoError(s.t, s.until(s.ctx, "no client is left", func() bool {
			for _, n := range s.load() {
				if n > 0 {
					return false
				}
			}
			return true
		}))
		s.pause(time.Second)
		s.network.Set(link.State{})
	})
}

func (s *storms) networkSlow() {
	before := s.marks()
	s.network.Set(link.State{BytesPerSecond: 32 << 10})
	s.network.Drop()
	s.churning(func() { s.pause(5 * time.Second) })
	s.back(before)
	after := s.marks()
	s.settle() // at this speed
	for f, n := range after {
		assert.Zero(s.t, f.broken(n), "%s lost its stream for being slow", f.node)
	}
	s.network.Set(link.State{})
}

func (s *storms) networkHeld() {
	before := s.marks()
	s.churning(func() {
		s.network.Set(link.State{Held: true})
		// Both ends notice by themselves.
		require.NoError(s.t, s.until(s.ctx, "typhas have noticed", func() bool {
			for _, r := range s.replicas {
				if r.metrics(s.ctx)[`typha_clients{view="NODE"}`] > 0 {
					return false
				}
			}
			return true
		}))
		s.network.Set(link.State{})
		s.back(before)
	})
	s.resumes(before, false)
}
