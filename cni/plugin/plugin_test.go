package plugin_test

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/muslin-net/muslin/internal/rpc"
	felixv1 "github.com/muslin-net/muslin/proto/muslin/felix/v1"
)

var update = flag.Bool("update", false, "rewrite the golden files")

var versions = []string{"0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"}

func TestAddPrintsTheResultOfEachVersion(t *testing.T) {
	f := serve(t)
	for _, version := range versions {
		t.Run(version, func(t *testing.T) {
			out := f.ask("ADD", version).succeed(t)
			file := filepath.Join("testdata", "add-"+version+".json")
			if *update {
				require.NoError(t, os.WriteFile(file, []byte(out), 0o600))
			}
			want, err := os.ReadFile(file)
			require.NoError(t, err, "run the test with -update and review the difference")
			require.JSONEq(t, string(want), out)
		})
	}
	out := f.ask("ADD", "").succeed(t)
	require.Contains(t, out, `"ip4"`, "without a version it is the oldest shape")
}

// What runtimes read must have the keys that the real plugin prints, and no others.
func TestAddHasTheShapeOfCalicos(t *testing.T) {
	real, err := os.ReadFile("testdata/calico-add-0.3.1.json")
	require.NoError(t, err)
	require.Equal(t, shape(t, string(real)), shape(t, serve(t).ask("ADD", "0.3.1").succeed(t)))
}

// shape lists the paths of a document with the types of what is there.
func shape(t *testing.T, doc string) []string {
	t.Helper()
	var v any
	require.NoError(t, json.Unmarshal([]byte(doc), &v))
	paths := map[string]bool{}
	var walk func(string, any)
	walk = func(path string, v any) {
		switch v := v.(type) {
		case map[string]any:
			for k, e := range v {
				walk(path+"."+k, e)
			}
		case []any:
			for _, e := range v {
				walk(path+"[]", e)
			}
		default:
			paths[fmt.Sprintf("%s %T", path, v)] = true
		}
	}
	walk("", v)
	return slices.Sorted(maps.Keys(paths))
}

func TestAddTellsFelixWhatTheRuntimeAndTheConfigurationSay(t *testing.T) {
	f := serve(t)
	f.ask("ADD", "1.0.0").with("mtu", 1400).with("container_settings", map[string]any{"allow_ip_forwarding": true}).
		with("policy_setup_timeout_seconds", 3).with("require_policy", true).
		with("args", map[string]any{"cni": map[string]any{"labels": []map[string]string{{"key": "app", "value": "web"}}}}).succeed(t)
	require.Equal(t, "k8s-pod-network c-worker-1-1 eth0", text(f.add.GetAttachment()))
	require.Equal(t, "/var/run/netns/fxp-worker-1-1", f.add.GetNetns())
	require.Equal(t, map[string]string{"IgnoreUnknown": "1", "K8S_POD_NAMESPACE": "shop", "K8S_POD_NAME": "web-0"}, f.add.GetArgs())
	cfg := f.add.GetConfig()
	require.Equal(t, uint32(1400), cfg.GetMtu())
	require.True(t, cfg.GetAssignIpv4() && cfg.GetAssignIpv6() && cfg.GetKubernetesPolicy() && cfg.GetAllowIpForwarding() && cfg.GetRequirePolicy())
	require.Equal(t, int64(3), cfg.GetPolicyWait().GetSeconds())
	require.Equal(t, map[string]string{"app": "web"}, cfg.GetLabels())
}

func text(a *felixv1.Attachment) string {
	return a.GetNetwork() + " " + a.GetContainerId() + " " + a.GetInterface()
}

func TestOtherVerbs(t *testing.T) {
	f := serve(t)
	require.Empty(t, f.ask("DEL", "0.3.1").succeed(t))
	require.Equal(t, "k8s-pod-network c-worker-1-1 eth0", text(f.del.GetAttachment()))
	gone := f.ask("DEL", "1.1.0")
	gone.netns = ""
	require.Empty(t, gone.succeed(t), "the namespace may be gone already")

	require.Empty(t, f.ask("STATUS", "1.1.0").succeed(t))

	f.ask("GC", "1.1.0").with("cni.dev/valid-attachments", []map[string]string{{"containerID": "c1", "ifname": "eth0"}}).succeed(t)
	require.Equal(t, "k8s-pod-network", f.gc.GetNetwork())
	require.Equal(t, "k8s-pod-network c1 eth0", text(f.gc.GetValid()[0]))

	version := f.ask("VERSION", "1.0.0")
	var told struct{ SupportedVersions []string }
	require.NoError(t, json.Unmarshal([]byte(version.succeed(t)), &told))
	require.Equal(t, versions, told.SupportedVersions)
}

func TestCheckComparesWithThePreviousResult(t *testing.T) {
	f := serve(t)
	for _, version := range []string{"0.4.0", "1.0.0", "1.1.0"} {
		var prev map[string]any
		require.NoError(t, json.Unmarshal([]byte(f.ask("ADD", version).succeed(t)), &prev))
		require.Empty(t, f.ask("CHECK", version).with("prevResult", prev).succeed(t))
		require.Equal(t, addresses, f.check.GetAddresses(), version)
		require.Equal(t, "e6:b5:dc:75:d1:d5", f.check.GetMac(), version)

		// A plugin later in the chain added an interface of its own.
		prev["interfaces"] = append(prev["interfaces"].([]any), map[string]any{"name": "extra", "sandbox": "/var/run/netns/fxp-worker-1-1", "mac": "00:00:00:00:00:01"})
		ip := maps.Clone(prev["ips"].([]any)[0].(map[string]any))
		ip["address"], ip["interface"] = "10.9.9.9/24", 2
		prev["ips"] = append(prev["ips"].([]any), ip)
		f.ask("CHECK", version).with("prevResult", prev).succeed(t)
		require.Equal(t, addresses, f.check.GetAddresses(), "only what is ours is compared")
	}
	e := f.ask("CHECK", "1.0.0").fail(t)
	require.Equal(t, uint(7), e.Code)
	require.Contains(t, e.Msg, "prevResult is missing")
	e = f.ask("CHECK", "1.0.0").with("prevResult", map[string]any{"cniVersion": "1.0.0", "ips": "nonsense"}).fail(t)
	require.Equal(t, uint(7), e.Code)

	f.set(status.Error(codes.FailedPrecondition, "endpoint web-0 has MAC a, the result of ADD had b"))
	e = f.ask("CHECK", "1.0.0").with("prevResult", map[string]any{"cniVersion": "1.0.0"}).fail(t)
	require.Equal(t, uint(999), e.Code)
	require.Equal(t, "the container's network is not as ADD left it", e.Msg)
	require.Contains(t, e.Details, "has MAC a")
}

// The codes are those of the specification: 4 environment, 7 configuration, 11 try again later, 50 plugin not available,
// 999 anything else.
func TestErrors(t *testing.T) {
	f := serve(t)
	socket := filepath.Join(t.TempDir(), "nobody")
	nobody := f.ask("ADD", "1.0.0").with("felix_socket", socket)
	badArgs, badIP := f.ask("ADD", "1.0.0"), f.ask("ADD", "1.0.0")
	badArgs.args, badIP.args = "nonsense", "IP=10.0.0"
	noContainer, badVerb := f.ask("ADD", "1.0.0"), f.ask("FROB", "1.0.0")
	noContainer.container = ""
	for name, c := range map[string]struct {
		call invocation
		err  error
		code uint
		says string
	}{
		"felix is down":                {nobody, nil, 11, ": connect: no such file or directory; is felix running on this node?"},
		"felix is down, DEL":           {invocationOf(nobody, "DEL"), nil, 11, "felix has not answered on " + socket + " for "},
		"felix is down, STATUS":        {invocationOf(nobody, "STATUS").with("cniVersion", "1.1.0"), nil, 50, "felix has not answered on " + socket + ": dial"},
		"felix is not ready":           {f.ask("ADD", "1.0.0"), status.Error(codes.Unavailable, "typha has not sent the node's view"), 11, " s: typha has not sent the node's view"},
		"felix fails":                  {f.ask("ADD", "1.0.0"), status.Error(codes.Internal, "route 10.0.0.1: no such device"), 999, "no such device"},
		"felix cannot ever":            {f.ask("ADD", "1.0.0"), status.Error(codes.InvalidArgument, "interface cali1 is that of another"), 7, "that of another"},
		"no namespace":                 {f.ask("ADD", "1.0.0"), status.Error(codes.NotFound, "network namespace /run/netns/a: no such file"), 4, "/run/netns/a"},
		"mtu":                          {f.ask("ADD", "1.0.0").with("mtu", -3), nil, 7, "mtu -3 is out of range"},
		"type of a key":                {f.ask("ADD", "1.0.0").with("mtu", "big"), nil, 7, "mtu"},
		"unknown key":                  {f.ask("ADD", "1.0.0").with("mtuu", 1400), nil, 7, `key "mtuu" is unknown; did you mean "mtu"?`},
		"bad annotation":               {annotated(f.ask("ADD", "1.0.0"), "cni.projectcalico.org/ipAddrs", "10.1.2.3"), nil, 7, `write it as ["10.1.2.3"]`},
		"bad capability":               {f.ask("ADD", "1.0.0").with("runtimeConfig", map[string]any{"mac": "x"}), nil, 7, "runtimeConfig.mac"},
		"CNI_ARGS":                     {badArgs, nil, 4, `"nonsense" is not of the form KEY=VALUE`},
		"CNI_ARGS IP":                  {badIP, nil, 4, "IP=10.0.0 is not an address"},
		"no container":                 {noContainer, nil, 4, "CNI_CONTAINERID"},
		"unknown verb":                 {badVerb, nil, 4, "FROB"},
		"version of tomorrow":          {f.ask("ADD", "9.9.9"), nil, 1, "9.9.9"},
		"CHECK before it existed":      {f.ask("CHECK", "0.3.1").with("prevResult", map[string]any{}), nil, 1, "CHECK"},
		"STATUS before it existed":     {f.ask("STATUS", "1.0.0"), nil, 1, "STATUS"},
		"no such IPAM plugin":          {f.ask("ADD", "1.0.0").with("ipam", map[string]any{"type": "no-such"}), nil, 999, "no-such"},
		"calico-ipam, no typha":        {ipam(f.ask("ADD", "1.0.0")), status.Error(codes.Aborted, "typha cannot be reached"), 11, "typha cannot be reached"},
		"calico-ipam, network's name":  {ipam(f.ask("ADD", "1.0.0")).with("ipam", map[string]any{"assign_ipv4": "maybe"}), nil, 7, "assign_ipv4"},
		"calico-ipam, pools exhausted": {ipam(f.ask("ADD", "1.0.0")), status.Error(codes.Internal, "pool default-ipv4-ippool is full"), 999, "is full"},
	} {
		t.Run(name, func(t *testing.T) {
			f.set(c.err)
			e := c.call.fail(t)
			require.Equal(t, c.code, e.Code, "%+v", e)
			require.Contains(t, e.Msg+" "+e.Details, c.says)
			require.NotContains(t, e.Msg+e.Details, "rpc error", "people read this")
		})
	}
	f.set(nil, "typha has not sent the node's view")
	e := f.ask("STATUS", "1.1.0").fail(t)
	require.Equal(t, uint(50), e.Code)
	require.Contains(t, e.Details, "typha has not sent the node's view")
}

// annotated is a call with an annotation of the pod, as containerd hands it on.
func annotated(i invocation, key, value string) invocation {
	return i.with("runtimeConfig", map[string]any{"io.kubernetes.cri.pod-annotations": map[string]string{key: value}})
}

// Whatever is wrong with a call by now, the pod can go.
func TestDeleteMindsNothingThatItDoesNotNeed(t *testing.T) {
	f := serve(t)
	for name, i := range map[string]invocation{
		"unknown key":    f.ask("DEL", "1.0.0").with("mtuu", 1),
		"type of a key":  f.ask("DEL", "1.0.0").with("mtu", "big"),
		"bad annotation": annotated(f.ask("DEL", "1.0.0"), "cni.projectcalico.org/ipAddrs", "10.1.2.3"),
	} {
		f.set(nil)
		i.succeed(t)
		require.NotNil(t, f.del, name)
	}
}

// While felix is restarted, calls that can be repeated wait for it: where nobody listens yet, where the felix before listened, and
// where that one ended in the middle of the call.
func TestVerbsWaitForAFelixThatIsRestarted(t *testing.T) {
	f := &felix{socket: filepath.Join(t.TempDir(), "cni.sock")}
	for name, call := range map[string]invocation{
		"ADD": f.ask("ADD", "1.1.0"), "DEL": f.ask("DEL", "1.1.0"), "GC": f.ask("GC", "1.1.0"),
		"calico-ipam ADD": ipam(f.ask("ADD", "1.1.0")), "calico-ipam DEL": ipam(f.ask("DEL", "1.1.0")),
	} {
		call.patience = patient
		t.Run(name, func(t *testing.T) {
			for _, before := range []string{"none", "killed", "starting"} {
				require.NoError(t, os.RemoveAll(f.socket))
				f.set(nil)
				switch before {
				case "killed": // its socket is still there
					l, err := rpc.ListenUnix(f.socket)
					require.NoError(t, err)
					require.NoError(t, l.Close())
				case "starting":
					f.set(status.Error(codes.Unavailable, "the routes of the node are not read yet"))
					f.serve(t)
				}
				done := make(chan string, 1)
				go func() {
					out, ok := call.run(t)
					if ok {
						out = ""
					}
					done <- out
				}()
				select {
				case said := <-done:
					require.Fail(t, "the call ended while felix was away", "%s: %s", before, said)
				case <-time.After(restart / 4):
				}
				stop := func() {}
				if f.set(nil); before != "starting" {
					stop = f.serve(t)
				}
				require.Empty(t, <-done, before)
				stop()
			}
		})
	}
}

func TestAddIsRepeatedWhenFelixEndsInTheMiddle(t *testing.T) {
	begun := make(chan struct{})
	f := &felix{socket: filepath.Join(t.TempDir(), "cni.sock"), during: func(ctx context.Context) {
		begun <- struct{}{}
		<-ctx.Done()
	}}
	stop, done := f.serve(t), make(chan string, 1)
	go func() {
		call := f.ask("ADD", "1.0.0")
		call.patience = patient
		out, _ := call.run(t)
		done <- out
	}()
	<-begun
	stop()
	f.during = nil
	f.serve(t)
	require.Contains(t, <-done, "192.168.226.64/32")
}

func TestAddTellsFelixWhatThePodAsksFor(t *testing.T) {
	f := serve(t)
	i := f.ask("ADD", "1.0.0").with("runtimeConfig", map[string]any{
		"bandwidth": map[string]any{"ingressRate": 1000000, "ingressBurst": 2000000},
		"io.kubernetes.cri.pod-annotations": map[string]string{
			"cni.projectcalico.org/ipAddrs": `["10.1.2.3"]`, "cni.projectcalico.org/hwAddr": "02:00:5e:10:00:01", "kubernetes.io/egress-bandwidth": "10M",
			"cni.projectcalico.org/allowedSourcePrefixes": `["10.9.0.0/16"]`,
		},
	})
	i.succeed(t)
	cfg := f.add.GetConfig()
	require.Equal(t, [][]byte{{10, 1, 2, 3}}, cfg.GetFixed())
	require.Equal(t, "02:00:5e:10:00:01", cfg.GetMac())
	require.Equal(t, uint64(1000000), cfg.GetIngress().GetBandwidth())
	require.Equal(t, uint64(2000000), cfg.GetIngress().GetBurst())
	require.Equal(t, uint64(10e6), cfg.GetEgress().GetBandwidth())
	require.Equal(t, []string{"10.9.0.0/16"}, cfg.GetAllowedSourcePrefixes())
}

func invocationOf(i invocation, verb string) invocation { i.verb = verb; return i }

func ipam(i invocation) invocation { i.plugin = "calico-ipam"; return i }

func TestIPAMPluginForOtherPlugins(t *testing.T) {
	f := serve(t)
	out := ipam(f.ask("ADD", "1.0.0")).succeed(t)
	require.JSONEq(t, `{"cniVersion": "1.0.0",
		"ips": [{"address": "192.168.226.64/32"}, {"address": "fd00:77::9905:f003:c7bd:fb00/128"}],
		"routes": [{"dst": "192.168.226.64/32"}, {"dst": "fd00:77::9905:f003:c7bd:fb00/128"}]}`, out)
	require.True(t, f.assign.GetConfig().GetAssignIpv6())
	require.Empty(t, ipam(f.ask("CHECK", "1.0.0")).with("prevResult", map[string]any{"cniVersion": "1.0.0"}).succeed(t))
	require.Empty(t, ipam(f.ask("DEL", "1.0.0")).succeed(t))
	require.Equal(t, "k8s-pod-network c-worker-1-1 eth0", text(f.unassign.GetAttachment()))
	require.True(t, strings.HasPrefix(ipam(f.ask("VERSION", "1.0.0")).succeed(t), `{"cniVersion"`))
}
