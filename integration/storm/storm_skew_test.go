//go:build storm || secondkernel

package storm

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// typhaBefore links a typha that does as the version of the protocol before did. All that it is made of is compiled already.
func (s *storms) typhaBefore() string {
	s.t.Helper()
	const module = "github.com/muslin-net/muslin"
	path := filepath.Join(s.cfg.Dir, "typha-before")
	build := exec.Command("go", "build", "-trimpath", "-o", path,
		"-ldflags", "-s -w -X "+module+"/api/view.before=yes -X "+module+"/internal/daemon.version="+softwareBefore, module+"/typha")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	begin := time.Now()
	out, err := build.CombinedOutput()
	require.NoError(s.t, err, "%s", out)
	s.t.Logf("the typha of the version before was linked in %.1f s", time.Since(begin).Seconds())
	return path
}

// upgrade rolls the replicas back to the version of the protocol before and forward again, one by one, under churn and with clients of
// both versions; half of the way the clients change theirs. A replica is ended by turns as an upgrade does it and as a crash does.
func (s *storms) upgrade() {
	programs := map[rune]string{'n': s.cfg.Typha, 'b': s.typhaBefore()}
	first := s.marks()
	s.change(0)
	steps := 0
	// Each step is what the replicas are from then on, n of now and b of before, and differs from the last one in one replica.
	round := []string{"bnn", "bbn", "bbb", "nbb", "nbn", "bbn", "bnn", "nnn"}
	for begin := time.Now(); steps == 0 || time.Since(begin) < *length; {
		for i, step := range round {
			s.churning(func() {
				for at, version := range step {
					r := s.replicas[at]
					if r.Path == programs[version] {
						continue
					}
					r.End([]syscall.Signal{syscall.SIGTERM, syscall.SIGKILL}[steps%2])
					r.Path = programs[version]
					require.NoError(s.t, r.Start())
					require.NoError(s.t, s.ready(s.ctx))
					steps++
				}
				if i == len(round)/2 {
					s.change(1)
				}
				s.network.Drop() // so that every client meets another replica, of either version
				s.pause(*every / 2)
			})
			if i%3 != 0 {
				s.settle()
			}
		}
	}
	require.NoError(s.t, s.synced(s.ctx))
	for _, f := range s.Followers {
		f.before.Store(false)
	}
	s.network.Drop()
	s.judgeSkew(first)
	s.t.Logf("%d times a replica was exchanged", steps)
}

// change has every other client be of the version before, beginning with the first or the second.
func (s *storms) change(odd int) {
	for i, f := range s.Followers {
		f.before.Store(i%2 == odd)
	}
	s.network.Drop()
}

// judgeSkew judges the streams since some moment. A client resumes, whichever version it is of and replicas are; but for the typha of
// the version before, which does not understand what a client of now says it has, and sends it all.
func (s *storms) judgeSkew(since map[*Follower]int) {
	s.t.Helper()
	type kind struct{ client, typha bool } // of the version before
	streams, resumed, bytes := map[kind]int{}, map[kind]int{}, map[kind]int{}
	for _, f := range s.Followers {
		for _, one := range f.since(since[f]) {
			if !one.Synced {
				continue
			}
			k := kind{one.Before, one.Typha}
			streams[k]++
			bytes[k] += one.First
			if one.Resumed {
				resumed[k]++
			}
			assert.Equal(s.t, one.Before || !one.Typha, one.Resumed, "%s, of the version before: %v, at %s, of it: %v", f.node, one.Before, one.Replica, one.Typha)
		}
	}
	version := map[bool]string{true: "before", false: "now"}
	for _, k := range []kind{{false, false}, {false, true}, {true, false}, {true, true}} {
		require.Positive(s.t, streams[k], "no client of %s was at a typha of %s, so that was not tried", version[k.client], version[k.typha])
		s.t.Logf("clients of %s at typhas of %s: %d streams, %d resumed, %d bytes each until in sync", version[k.client], version[k.typha],
			streams[k], resumed[k], bytes[k]/streams[k])
	}
}
