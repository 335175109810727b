//go:build lab

package suite

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"

	"github.com/muslin-net/muslin/csi/client"
	"github.com/muslin-net/muslin/integration/lab"
	"github.com/muslin-net/muslin/internal/rpc"
	felixv1 "github.com/muslin-net/muslin/proto/muslin/felix/v1"
	typhav1 "github.com/muslin-net/muslin/proto/muslin/typha/v1"
)

// TestPolicySync: a pod that mounts a volume of the CSI driver is told its own policy, from a user's edit to the proxy in the
// pod, also by another felix, until the volume goes. This test is kubelet and proxy.
func TestPolicySync(t *testing.T) {
	dir := t.TempDir() // before the lab, so that it goes after felix, which writes there
	c := up(t, "policysync", lab.ModeVXLAN, nil)
	const node = "worker-2"
	require.Equal(t, node, c.pod(t, "pod-2").Node)
	home, socket := client.HomeAt(filepath.Join(dir, "nodeagent")), filepath.Join(dir, "csi.sock")
	settings := filepath.Join(dir, "nodeagent.json")
	require.NoError(t, os.WriteFile(settings, []byte(fmt.Sprintf(`{"nodeagent_management_home": %q}`, filepath.Dir(home.Mounts))), 0o600))
	c.beside(t, node, "csi-node-driver", "--nodeid", node, "--endpoint", socket, "--nodeagent-config", settings)
	c.apply(t, fmt.Sprintf(`
apiVersion: projectcalico.org/v3
kind: FelixConfiguration
metadata: {name: node.%s}
spec: {policySyncPathPrefix: %s}
`, node, filepath.Dir(home.Mounts)))
	policy := func(method string) {
		c.apply(t, `
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: web, namespace: default}
spec:
  selector: projectcalico.org/namespace == 'default'
  types: [Ingress]
  ingress:
  - {action: Allow, protocol: TCP, source: {selector: all()}, http: {methods: [`+method+`], paths: [{prefix: /shop}]}}
`)
	}
	policy("GET")

	driver := csi.NewNodeClient(dialUnix(t, socket))
	const id = "csi-volume"
	target := filepath.Join(dir, "pods/uid-2/volumes/kubernetes.io~csi/policy-sync/mount")
	require.NoError(t, os.MkdirAll(filepath.Dir(target), 0o755))
	_, err := driver.NodePublishVolume(within(t, patience), &csi.NodePublishVolumeRequest{
		VolumeId: id, TargetPath: target,
		VolumeCapability: &csi.VolumeCapability{AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{}}},
		VolumeContext: map[string]string{
			"csi.storage.k8s.io/pod.name": "pod-2", "csi.storage.k8s.io/pod.namespace": "default", "csi.storage.k8s.io/pod.uid": "uid-2",
			"csi.storage.k8s.io/serviceAccount.name": "default", "csi.storage.k8s.io/ephemeral": "true",
		},
	}, grpc.WaitForReady(true))
	require.NoError(t, err)

	felix := felixv1.NewPolicySyncServiceClient(dialUnix(t, filepath.Join(home.Directory(id), client.SocketName)))
	proxy := listen(t, felix)
	proxy.until(t, func() bool { return proxy.inSync && proxy.method("np/default/web") == "GET" })
	w := proxy.knows["k8s/default/pod-2/eth0"].GetWorkloadEndpoint()
	require.Equal(t, c.address(t, "pod-2").AsSlice(), w.GetAddresses()[0])
	require.Contains(t, proxy.knows, w.GetPolicyList())
	set := proxy.knows["np/default/web"].GetPolicy().GetIngress()[0].GetSource().GetSets()[0]
	require.NotEmpty(t, proxy.knows[set].GetIpSet().GetMembers())
	for key, item := range proxy.knows {
		require.True(t, item.GetWorkloadEndpoint() == nil || key == "k8s/default/pod-2/eth0", "another pod: %s", key)
	}
	policy("POST")
	proxy.until(t, func() bool { return proxy.method("np/default/web") == "POST" })

	c.kill(t, victim{node, "felix"})
	require.Error(t, proxy.end())
	c.start(t, victim{node, "felix"})
	proxy = listen(t, felix)
	proxy.until(t, func() bool { return proxy.inSync })
	require.Equal(t, "POST", proxy.method("np/default/web"))
	require.Contains(t, c.metrics(t, node, 9099), "felix_policy_sync_sockets 1")

	_, err = driver.NodeUnpublishVolume(within(t, patience), &csi.NodeUnpublishVolumeRequest{VolumeId: id, TargetPath: target})
	require.NoError(t, err)
	require.Error(t, proxy.end())
	require.NoDirExists(t, home.Directory(id))
	require.NoDirExists(t, target)
}

// beside runs a program on a node until the test ends.
func (c *cluster) beside(t *testing.T, node string, args ...string) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = c.Exec(ctx, node, lab.Command{Args: args, Stderr: t.Output()})
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
}

func dialUnix(t *testing.T, socket string) *grpc.ClientConn {
	t.Helper()
	conn, err := rpc.DialUnix(socket)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// proxy is what a pod's proxy has of its policy.
type proxy struct {
	stream grpc.ServerStreamingClient[felixv1.SyncResponse]
	knows  map[string]*typhav1.Item
	inSync bool
}

func listen(t *testing.T, felix felixv1.PolicySyncServiceClient) *proxy {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 4*patience)
	t.Cleanup(cancel)
	for {
		stream, err := felix.Sync(ctx, &felixv1.SyncRequest{}, grpc.WaitForReady(true))
		require.NoError(t, err)
		p := &proxy{stream: stream, knows: map[string]*typhav1.Item{}}
		if p.take() == nil {
			return p
		}
		require.NoError(t, ctx.Err(), "felix does not answer")
		time.Sleep(glance) // as a proxy, which calls again after a moment
	}
}

// take takes over one message.
func (p *proxy) take() error {
	part, err := p.stream.Recv()
	if err != nil {
		return err
	}
	for _, item := range part.GetItem() {
		if item.GetIpSetDelta() == nil {
			p.knows[item.GetId()] = item
		}
	}
	for _, key := range part.GetGone() {
		delete(p.knows, key.GetId())
	}
	p.inSync = p.inSync || part.GetInSync()
	return nil
}

// until takes over messages until something holds.
func (p *proxy) until(t *testing.T, holds func() bool) {
	t.Helper()
	for !holds() {
		require.NoError(t, p.take())
	}
}

// end waits for the stream's end.
func (p *proxy) end() error {
	for {
		if err := p.take(); err != nil {
			return err
		}
	}
}

// method is the method that the first rule of a policy allows.
func (p *proxy) method(policy string) string {
	for _, r := range p.knows[policy].GetPolicy().GetIngress() {
		for _, m := range r.GetHttp().GetMethods() {
			return m
		}
	}
	return ""
}
