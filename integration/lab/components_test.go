package lab

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestBinaries(t *testing.T) {
	topo, err := DemoTopology()
	require.NoError(t, err)
	assert.Equal(t, []string{"typha", "kube-controllers", "calico-node", "bird", "felix", "confd", "calico", "calico-ipam", "calicoctl"}, binaries(topo))
	assert.Empty(t, binaries(byHand(topo)))
	topo.Nodes = topo.Nodes[:1]
	topo.Nodes[0].Processes = []string{ProcessEtcd, ProcessBird}
	assert.Equal(t, []string{"bird"}, binaries(topo))
	topo.Nodes[0].Speaker = SpeakerBIRD2
	assert.Empty(t, binaries(topo), "the machine's own BIRD is none of ours")
}

// TestCommands: who dials whom, with which identity, and who may reach the datastore.
func TestCommands(t *testing.T) {
	topo, err := DemoTopology()
	require.NoError(t, err)
	s := &supervisor{config: config{StateDir: "/s", BinDir: "/b"}, topology: topo}
	line := func(node int, process string) string {
		c := s.commandOf(topo.Nodes[node], process)
		return strings.Join(append([]string{c.path}, c.args...), " ")
	}
	const identity = "--node worker-1 --typha 10.30.0.10:5473 --ca /etc/calico/pki/ca.crt --cert /etc/calico/pki/tls.crt --key /etc/calico/pki/tls.key"
	assert.Equal(t, "/b/felix "+identity+" --health 127.0.0.1:9099", line(1, ProcessFelix))
	assert.Equal(t, "/b/confd "+identity, line(1, ProcessConfd))
	assert.Equal(t, "/b/calico-node -startup "+identity, line(1, ProcessStartup))
	assert.True(t, s.commandOf(topo.Nodes[1], ProcessStartup).once)
	assert.Equal(t, "/b/bird --health 127.0.0.1:9097", line(1, ProcessBird))
	other := topo.Nodes[1]
	other.Speaker = SpeakerBIRD2
	bird2 := s.commandOf(other, ProcessBird)
	assert.Equal(t, "/bin/sh", bird2.path)
	assert.Contains(t, bird2.args[1], "exec /usr/sbin/bird -f -R -c /etc/calico/bird2.conf -s /run/calico/bird2.ctl")
	assert.Contains(t, s.nodeEnv(other), "CALICO_BGP_SPEAKER=bird2")
	assert.Contains(t, s.nodeEnv(topo.Nodes[1]), "CALICO_BGP_SPEAKER=muslin")
	assert.Contains(t, line(0, ProcessTypha), "--cert /etc/calico/typha/tls.crt")

	has := func(env []string, prefix string) bool {
		for _, v := range env {
			if strings.HasPrefix(v, prefix) {
				return true
			}
		}
		return false
	}
	for i, n := range topo.Nodes {
		assert.False(t, has(s.nodeEnv(n), "ETCD_ENDPOINTS="), "no process of a node is told of the datastore")
		assert.Equal(t, i == 0, has(s.shellEnv(n), "ETCD_ENDPOINTS=http://127.0.0.1:2379"))
		assert.True(t, has(s.nodeEnv(n), "NODENAME="+n.Name))
		assert.True(t, has(s.nodeEnv(n), envState+"=/s"))
	}
	assert.False(t, has(s.nodeEnv(topo.Nodes[1]), "NO_DEFAULT_POOLS"), "no pools are given, so start-up makes them")
	assert.False(t, has(s.nodeEnv(topo.Nodes[1]), "IP6="))
	s.topology.Pools, s.backend = []Pool{handPool(false)}, BackendVXLAN
	assert.True(t, has(s.nodeEnv(topo.Nodes[1]), "NO_DEFAULT_POOLS=true"))
	assert.True(t, has(s.nodeEnv(topo.Nodes[1]), "CALICO_NETWORKING_BACKEND=vxlan"))
	both := Node{Name: "both", Addresses: []netip.Addr{netip.MustParseAddr("10.30.0.9"), netip.MustParseAddr("fd30::9")}, Env: map[string]string{"FELIX_IPIPDRIVER": "BPF"}}
	assert.True(t, has(s.nodeEnv(both), "IP6=autodetect"))
	assert.True(t, has(s.nodeEnv(both), "FELIX_IPIPDRIVER=BPF"))
	both.Addresses = both.Addresses[1:]
	assert.True(t, has(s.nodeEnv(both), "IP=none"))
	s.topology.Datastore = DatastoreEtcd
	assert.True(t, has(s.shellEnv(topo.Nodes[0]), "ETCD_ENDPOINTS=http://10.30.0.10:2379"))
	assert.Contains(t, line(0, ProcessTypha), "http://10.30.0.10:2379")
	s.topology.Nodes[1].Processes = append(s.topology.Nodes[1].Processes, ProcessTypha)
	assert.Contains(t, line(2, ProcessFelix), "--typha 10.30.0.10:5473,10.30.0.206:5473")
}

func TestConflist(t *testing.T) {
	assert.Contains(t, conflist("worker-1", nil), `"assign_ipv4": "true", "assign_ipv6": "false"`)
	assert.Contains(t, conflist("worker-1", []Pool{handPool(true)}), `"assign_ipv4": "false", "assign_ipv6": "true"`)
	assert.Equal(t, map[string]any{"cni": map[string]any{"labels": []map[string]string{{"key": "a", "value": "1"}, {"key": "b", "value": "2"}}}},
		cniLabels(map[string]string{"b": "2", "a": "1"}))
}

func TestProblemsSayWhatToDo(t *testing.T) {
	assert.EqualError(t, problem("it is broken", "mend it"), "it is broken; mend it")
	assert.EqualError(t, problem("it is broken", ""), "it is broken")
	err := kernelProblem("make a bridge", "CONFIG_BRIDGE", unix.EOPNOTSUPP)
	assert.EqualError(t, err, "cannot make a bridge: this kernel lacks CONFIG_BRIDGE (operation not supported); load the module as root, or use a kernel that has it")
	assert.EqualError(t, kernelProblem("make a bridge", "CONFIG_BRIDGE", unix.EPERM), "make a bridge: operation not permitted")

	r := final(nil, problem("a", "b"))
	assert.Equal(t, &Problem{What: "a", Do: "b"}, r.Error)
	r = final(nil, errors.Join(problem("a", "b"), errors.New("c")))
	assert.Equal(t, "a; b\nc", r.Error.Error(), "nothing that is wrapped around gets lost")
}
