package gobgp_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/bird/policy"
	"github.com/muslin-net/muslin/bird/speaker"
)

// meshed is the configuration of one of n nodes of a mesh. reflectors says which nodes are; without mesh there are
// sessions with them alone.
func meshed(generation uint64, third byte, n, own int, mesh bool, reflectors ...int) policy.Config {
	address := loopback(third, own+1)
	var peers []policy.Peer
	reflects := slices.Contains(reflectors, own)
	for i := range n {
		if i == own || !mesh && !reflects && !slices.Contains(reflectors, i) {
			continue
		}
		other := loopback(third, i+1)
		p := peer(address, other, 64512, other.String() > address.String())
		p.Name, p.Type, p.ReflectorClient = "Mesh_"+other.String(), policy.PeerMesh, reflects && !slices.Contains(reflectors, i)
		peers = append(peers, p)
	}
	c := config(address, 64512, peers...)
	if c.Generation = generation; reflects {
		c.ClusterID = address
	}
	return c
}

// testSwitch takes a mesh to reflectors and back. No session that stays is made anew, and no route is missing for a moment:
// what is in place of the old is there before the old goes. Each step takes back what it does not need any more.
func testSwitch(t *testing.T, speakers []*speaker.Speaker) {
	const third, n = 78, 5
	for i, s := range speakers {
		announce(s, fmt.Sprintf("192.168.%d.0/26", i+1))
	}
	// paths lists over whom a node has a route to each other node: "192.168.2.0/26 over [2 3]".
	paths := func(s *speaker.Speaker) string {
		over := map[string][]string{}
		_ = s.Show(t.Context(), speaker.LookTable, "", netip.Prefix{}, func(j speaker.Judged) {
			if from := j.Peer; from.IsValid() {
				over[j.Prefix.String()] = append(over[j.Prefix.String()], fmt.Sprint(from.As4()[3]))
			}
		})
		var out []string
		for i := range n {
			p := fmt.Sprintf("192.168.%d.0/26", i+1)
			if len(over[p]) > 0 {
				slices.Sort(over[p])
				out = append(out, fmt.Sprintf("%d over %s", i+1, strings.Join(over[p], " ")))
			}
		}
		return strings.Join(out, ", ")
	}
	// Each node hears of another from that one itself, if they have a session, and from all reflectors.
	expected := func(own int, mesh bool, reflectors []int) string {
		var out []string
		for other := range n {
			var over []string
			for i := range n {
				direct := i == other && (mesh || slices.Contains(reflectors, own) || slices.Contains(reflectors, other))
				if direct || i != other && i != own && slices.Contains(reflectors, i) {
					over = append(over, fmt.Sprint(i+1))
				}
			}
			if other != own {
				out = append(out, fmt.Sprintf("%d over %s", other+1, strings.Join(over, " ")))
			}
		}
		return strings.Join(out, ", ")
	}
	var lost []func() []string
	for step, to := range []struct {
		what       string
		mesh       bool
		reflectors []int
	}{
		{"the mesh", true, nil},
		{"the first two reflect while the mesh is up", true, []int{0, 1}},
		{"the mesh is gone", false, []int{0, 1}},
		{"the third one besides", false, []int{0, 1, 2}},
		{"instead of the first", false, []int{1, 2}},
		{"the mesh is back", true, []int{1, 2}},
		{"and nothing else", true, nil},
	} {
		for i, s := range speakers {
			changes, err := s.Apply(meshed(uint64(step+2), third, n, i, to.mesh, to.reflectors...))
			require.NoError(t, err)
			require.Empty(t, changes.Restarted)
		}
		for i, s := range speakers {
			want := expected(i, to.mesh, to.reflectors)
			if !assert.Eventually(t, func() bool { return paths(s) == want }, time.Minute, 20*time.Millisecond) {
				require.Equal(t, want, paths(s), "%s, speaker %d", to.what, i+1)
			}
		}
		if step == 0 {
			for _, s := range speakers {
				lost = append(lost, losses(s))
			}
		}
	}
	for i, f := range lost {
		require.Empty(t, f(), "speaker %d", i+1)
	}
}

// losses begins to watch a speaker's best paths; what it returns lists the prefixes that were without one since.
func losses(s *speaker.Speaker) func() []string {
	stop, done := make(chan struct{}), make(chan struct{})
	var lost []string
	reader := s.ReadBest(0)
	_, _, _ = reader.Next(1 << 20)
	go func() {
		defer close(done)
		for {
			list, changed, err := reader.Next(1 << 20)
			if err != nil {
				lost = append(lost, err.Error())
				return
			}
			for _, b := range list {
				if len(b.Paths) == 0 {
					lost = append(lost, b.Prefix.String())
				}
			}
			select {
			case <-changed:
			case <-stop:
				return
			}
		}
	}()
	return func() []string { close(stop); <-done; return lost }
}
