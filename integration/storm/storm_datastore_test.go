//go:build storm || secondkernel

package storm

import (
	"context"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// TestStormsOfTheDatastore has an etcd of three members, with little space.
func TestStormsOfTheDatastore(t *testing.T) {
	t.Parallel()
	pass(t, Config{
		Members: 3, Quota: 64 << 20, Clients: min(*clients, 100),
		Size: Size{Nodes: min(*clients, 100) + 20, Pods: 8, Namespaces: 6, Policies: 6, Sets: 12},
	}, []storm{
		{"all clients come", (*storms).begin},
		{"etcd's leader is killed", func(s *storms) { s.leaderLost(syscall.SIGKILL) }},
		{"etcd's leader is frozen", func(s *storms) { s.leaderLost(syscall.SIGSTOP) }},
		{"etcd has no majority", (*storms).majorityLost},
		{"etcd's disk is full", (*storms).diskFull},
	})
}

// leads waits until all members of etcd answer and have a leader, and returns its number.
func (s *storms) leads() (at int) {
	s.t.Helper()
	require.NoError(s.t, s.until(s.ctx, "all members of etcd follow one leader", func() bool {
		at = s.etcd.leader(s.ctx)
		return at >= 0
	}))
	return at
}

// allReach waits until all clients have been told of a write that is made now, and returns how long etcd took to make it and how long
// all of that took.
func (s *storms) allReach() (written, reached time.Duration) {
	s.t.Helper()
	begin := time.Now()
	var revision int64
	require.NoError(s.t, s.until(s.ctx, "etcd takes a write", func() bool {
		return s.etcd.raw(s.ctx, func(ctx context.Context, c *clientv3.Client) error {
			ctx, cancel := context.WithTimeout(ctx, 2*time.Second) // it may have come to the member that is away
			defer cancel()
			put, err := c.Put(ctx, "/storm", "here")
			if err == nil {
				revision = put.Header.Revision
			}
			return err
		}) == nil
	}))
	written = time.Since(begin)
	require.NoError(s.t, s.until(s.ctx, "all clients are told", func() bool {
		for _, f := range s.Followers {
			if !f.reached(revision) {
				return false
			}
		}
		return true
	}))
	return written, time.Since(begin)
}

// leaderLost takes etcd's leader away, thrice: what is written goes on to come to all clients, and none of them notices.
func (s *storms) leaderLost(how syscall.Signal) {
	before := s.marks()
	s.churning(func() {
		for range 3 {
			leader := s.etcd.members[s.leads()]
			if how == syscall.SIGSTOP {
				require.True(s.t, leader.Signal(how))
			} else {
				leader.End(how)
			}
			written, reached := s.allReach()
			s.t.Logf("%s: %.1f s until etcd took a write, and %.1f s until all clients were told", leader.Name, written.Seconds(), reached.Seconds())
			if how == syscall.SIGSTOP {
				require.True(s.t, leader.Signal(syscall.SIGCONT))
			} else {
				require.NoError(s.t, leader.Start())
			}
		}
	})
	s.leads()
	for f, n := range before {
		assert.Zero(s.t, f.broken(n), "%s lost its stream over etcd's leader", f.node)
	}
}

// majorityLost kills two members of three: typha says so, goes on to serve what it knows, and goes on by itself afterwards.
func (s *storms) majorityLost() {
	before := s.marks()
	s.churning(func() {
		s.pause(time.Second)
		gone := s.etcd.members[1:]
		for _, m := range gone {
			m.End(syscall.SIGKILL)
		}
		for _, r := range s.replicas {
			s.told(r, unreachable, "Unreachable")
		}
		for _, m := range gone {
			require.NoError(s.t, m.Start())
		}
		s.allReach()
		for _, r := range s.replicas {
			require.NoError(s.t, s.until(s.ctx, r.Name+" reads again", func() bool { v, ok := r.metrics(s.ctx)[unreachable]; return ok && v == 0 }))
		}
	})
	s.leads()
	for f, n := range before {
		assert.Zero(s.t, f.broken(n), "%s lost its stream over etcd's trouble", f.node)
	}
}

// diskFull fills etcd up to its quota. Typha says so; a replica that starts then serves, and clients resume. Then it is mended as
// docs/operations.md says.
func (s *storms) diskFull() {
	const full, junk = "typha_datastore_full", "/junk/"
	s.churning(func() {
		s.pause(time.Second)
		s.fill(junk)
		for _, r := range s.replicas {
			s.told(r, full, "what cannot be written: etcd: datastore has no space left")
		}
		assert.Zero(s.t, s.replicas[0].metrics(s.ctx)[unreachable], "it is read as ever")
		before := s.marks()
		s.replicas[0].End(syscall.SIGKILL)
		require.NoError(s.t, s.replicas[0].Start())
		require.NoError(s.t, s.ready(s.ctx))
		s.network.Drop()
		s.back(before)
		s.resumes(before, false)
		s.told(s.replicas[0], full, "etcdctl alarm disarm")
		s.empty(junk)
		for _, r := range s.replicas {
			require.NoError(s.t, s.until(s.ctx, r.Name+" says that it can write", func() bool { v, ok := r.metrics(s.ctx)[full]; return ok && v == 0 }))
		}
		s.allReach()
	})
}

// fill writes until etcd has no space left.
func (s *storms) fill(prefix string) {
	s.t.Helper()
	value := strings.Repeat("x", 1<<20)
	for i := 0; ; i++ {
		require.Less(s.t, i, 1000, "a GB fits into a quota of %d", s.cfg.Quota)
		err := s.etcd.raw(s.ctx, func(ctx context.Context, c *clientv3.Client) error {
			_, err := c.Put(ctx, fmt.Sprint(prefix, i), value)
			return err
		})
		if err != nil {
			require.ErrorIs(s.t, err, rpctypes.ErrNoSpace)
			s.t.Logf("etcd is full after %d MB", i)
			return
		}
	}
}

// empty makes space: it deletes, compacts, defragments every member and takes the alarm back.
func (s *storms) empty(prefix string) {
	s.t.Helper()
	require.NoError(s.t, s.etcd.raw(s.ctx, func(ctx context.Context, c *clientv3.Client) error {
		_, err := c.Delete(ctx, prefix, clientv3.WithPrefix())
		return err
	}))
	revision, err := s.etcd.revision(s.ctx)
	require.NoError(s.t, err)
	require.NoError(s.t, s.etcd.compact(s.ctx, revision))
	for _, url := range s.etcd.urls() {
		require.NoError(s.t, s.etcd.raw(s.ctx, func(ctx context.Context, c *clientv3.Client) error {
			_, err := c.Defragment(ctx, url)
			return err
		}))
	}
	require.NoError(s.t, s.etcd.raw(s.ctx, func(ctx context.Context, c *clientv3.Client) error {
		_, err := c.AlarmDisarm(ctx, &clientv3.AlarmMember{})
		return err
	}))
}
