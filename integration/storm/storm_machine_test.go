//go:build secondkernel

package storm

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestStormsOfTheMachine is for a kernel of its own: it sets the clock and limits memory.
func TestStormsOfTheMachine(t *testing.T) {
	*rate = 20 // the processor is emulated
	pass(t, Config{Clients: 6, Size: Size{Nodes: 12, Pods: 4, Namespaces: 3, Policies: 2, Sets: 6}}, []storm{
		{"all clients come", (*storms).begin},
		{"the clock jumps", (*storms).clockJumps},
		{"memory has a hard limit", (*storms).hardMemory},
	})
}

// step sets the clock forward or back. Time since the machine started goes on as it was.
func (s *storms) step(by time.Duration) {
	s.t.Helper()
	var now unix.Timespec
	require.NoError(s.t, unix.ClockGettime(unix.CLOCK_REALTIME, &now))
	now = unix.NsecToTimespec(now.Nano() + by.Nanoseconds())
	require.NoError(s.t, unix.ClockSettime(unix.CLOCK_REALTIME, &now))
	s.t.Logf("the clock is set by %s", by)
}

// connectionTime is longer than any timer of a connection.
const connectionTime = 20 * time.Second

// lost counts the streams that ended since the marks, and the followers who have lost none.
func (s *storms) lost(since map[*Follower]int) (streams, kept int) {
	for f, n := range since {
		broken := f.broken(n)
		streams += broken
		if broken == 0 {
			kept++
		}
	}
	return streams, kept
}

// clockJumps sets the clock back and forth. Streams do not end when it goes forward, also where certificates are not valid at the new time,
// and go on to bring what is written. When it goes back they end once: gRPC's keepalive reckons by the clock, and takes the other end for
// silent. Who comes when his certificate is not valid is refused until it is, and resumes then. What the clock does it does to all
// streams: one that ends beside others that do not had too little time, in a guest on a machine that others use.
func (s *storms) clockJumps() {
	const day = 24 * time.Hour
	const refused = `typha_refused_total{reason="handshake"}`
	told := map[string]float64{}
	jumps := []struct {
		by    time.Duration
		valid bool // certificates are, at that time: if not, the clock is set right again
	}{{5 * day, true}, {-5 * day, true}, {12 * day, false}, {-2 * day, false}, {-10 * 365 * day, false}}
	for _, jump := range jumps {
		before := s.marks()
		s.churning(func() {
			s.step(jump.by)
			s.pause(connectionTime)
			if jump.by > 0 || jump.valid {
				_, reached := s.allReach()
				s.t.Logf("a write came to all clients within %.1f s", reached.Seconds())
			}
		})
		lost, kept := s.lost(before)
		s.t.Logf("%d streams of %d were lost", lost, len(before))
		if jump.by > 0 {
			assert.Positive(s.t, kept, "all streams were lost over the clock")
		} else if jump.valid {
			resumed := s.marks()
			s.churning(func() { s.pause(connectionTime) })
			_, kept = s.lost(resumed)
			assert.Positive(s.t, kept, "all streams were lost once more")
		}
		again := s.marks()
		s.network.Drop()
		if !jump.valid {
			for _, r := range s.replicas {
				require.NoError(s.t, s.until(s.ctx, r.Name+" tells of handshakes that it refused", func() bool { return r.metrics(s.ctx)[refused] > told[r.Name] }))
			}
			for _, f := range s.Followers {
				assert.False(s.t, f.last().Synced, "%s got in with a certificate that is not valid", f.node)
			}
			s.step(-jump.by)
		}
		s.back(again)
		s.resumes(before, false)
		for _, r := range s.replicas {
			told[r.Name] = r.metrics(s.ctx)[refused]
		}
	}
}

// hardMemory has a replica run in a cgroup with less memory than it takes by itself. With a limit that it knows of (GOMEMLIMIT) it goes
// on; with one far below that the kernel kills it, and its clients resume on the others.
func (s *storms) hardMemory() {
	const root = "/sys/fs/cgroup"
	require.NoError(s.t, os.WriteFile(filepath.Join(root, "cgroup.subtree_control"), []byte("+memory"), 0))
	group := filepath.Join(root, "storm")
	require.NoError(s.t, os.Mkdir(group, 0o755))
	write := func(file string, value int) {
		s.t.Helper()
		require.NoError(s.t, os.WriteFile(filepath.Join(group, file), fmt.Append(nil, value), 0))
	}
	read := func(file, field string) (value int) {
		s.t.Helper()
		b, err := os.ReadFile(filepath.Join(group, file))
		require.NoError(s.t, err)
		for line := range bytes.Lines(b) {
			if words := bytes.Fields(line); field == "" || len(words) == 2 && string(words[0]) == field {
				value, err = strconv.Atoi(string(words[len(words)-1]))
				require.NoError(s.t, err)
			}
		}
		return value
	}
	r := s.replicas[0]
	restart := func() {
		s.t.Helper()
		r.End(syscall.SIGTERM)
		require.NoError(s.t, r.Start())
	}
	r.Cgroup = group
	defer func() { r.Cgroup, r.Env = "", nil }()

	s.churning(func() {
		restart()
		require.NoError(s.t, s.ready(s.ctx))
		s.network.Drop()
		s.pause(10 * time.Second)
	})
	used := read("memory.stat", "anon")

	soft := used * 9 / 10
	write("memory.max", max(soft*5/4, soft+8<<20))
	before := s.marks()
	s.churning(func() {
		r.Env = []string{fmt.Sprintf("GOMEMLIMIT=%d", soft)}
		restart()
		require.NoError(s.t, s.ready(s.ctx))
		s.network.Drop()
		s.back(before)
		s.pause(10 * time.Second)
	})
	s.t.Logf("it took %d KB of memory; with GOMEMLIMIT at %d KB and memory.max at %d KB it takes %d KB; the kernel killed %d times",
		used>>10, soft>>10, read("memory.max", "")>>10, read("memory.stat", "anon")>>10, read("memory.events", "oom_kill"))
	require.Zero(s.t, read("memory.events", "oom_kill"))
	s.settle()

	s.populate(0)
	before, victims := s.marks(), map[*Follower]int{}
	for f, n := range before {
		if s.at(f, 0) {
			victims[f] = n
		}
	}
	ended := r.Ended()
	s.churning(func() {
		write("memory.max", used/4) // what it has is more by far, and the heap cannot be written to a disk
		select {
		case <-ended:
		case <-time.After(patience):
			require.Fail(s.t, "the kernel let the replica live", "%d KB of memory under a limit of %d KB", read("memory.stat", "anon")>>10, used>>12)
		}
		require.Positive(s.t, read("memory.events", "oom_kill"))
		r.End(syscall.SIGKILL) // which it is
		s.back(victims)
		assert.Zero(s.t, s.load()[0])
	})
	s.resumes(before, false)
	s.t.Logf("with memory.max at %d KB the kernel killed it", used>>12)
}
