package kubernetes_test

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/kubernetes"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// TestGolden has resources of Kubernetes, and what they are in our terms: testdata/<name>.yaml and <name>.golden.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.yaml")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			text, err := os.ReadFile(file)
			require.NoError(t, err)
			var out []string
			for document := range strings.SplitSeq(string(text), "\n---\n") {
				o, wrong := translate(t, []byte(document))
				got := "# nothing\n"
				if o != nil {
					b, err := yaml.Marshal(o)
					require.NoError(t, err)
					got = string(b)
					again := o.DeepCopyObject().(api.Object)
					again.Default()
					require.NoError(t, again.Validate(), "what is made is valid")
				}
				if wrong != nil {
					got += "# " + strings.ReplaceAll(wrong.Error(), "\n", "\n# ") + "\n"
				}
				out = append(out, got)
			}
			golden := strings.TrimSuffix(file, ".yaml") + ".golden"
			all := strings.Join(out, "---\n")
			if *update {
				require.NoError(t, os.WriteFile(golden, []byte(all), 0o644))
			}
			want, err := os.ReadFile(golden)
			require.NoError(t, err)
			assert.Equal(t, string(want), all)
		})
	}
}

func translate(t *testing.T, document []byte) (api.Object, error) {
	t.Helper()
	var head metav1.TypeMeta
	require.NoError(t, yaml.Unmarshal(document, &head))
	read := func(into any) { require.NoError(t, yaml.UnmarshalStrict(document, into)) }
	switch head.Kind {
	case "Node":
		var n corev1.Node
		read(&n)
		return kubernetes.Node(&n, n.Labels["use-pod-cidr"] == "yes")
	case "Pod":
		var p corev1.Pod
		read(&p)
		e, wrong := kubernetes.Endpoint(&p)
		if e == nil {
			return nil, wrong
		}
		return e, wrong
	case "Namespace":
		var n corev1.Namespace
		read(&n)
		return kubernetes.NamespaceProfile(&n), nil
	case "ServiceAccount":
		var a corev1.ServiceAccount
		read(&a)
		return kubernetes.ServiceAccountProfile(&a), nil
	case "NetworkPolicy":
		var p networkingv1.NetworkPolicy
		read(&p)
		return kubernetes.Policy(&p)
	}
	require.FailNow(t, "no such kind", head.Kind)
	return nil, nil
}

func TestReversedUID(t *testing.T) {
	const uid types.UID = "30316465-6365-4463-ad63-3564622d3638"
	require.Equal(t, types.UID("0c8c26a6-c6a6-44c6-adc6-ac2646b46c1c"), kubernetes.ReversedUID(uid))
	require.Equal(t, uid, kubernetes.ReversedUID(kubernetes.ReversedUID(uid)))
	require.Equal(t, types.UID("none"), kubernetes.ReversedUID("none"))
}

func TestProfileOf(t *testing.T) {
	for _, c := range []struct {
		name, namespace, account string
		ok                       bool
	}{
		{"kns.shop", "shop", "", true},
		{"ksa.shop.web", "shop", "web", true},
		{"ksa.shop.web.blue", "shop", "web.blue", true},
		{"kns.", "", "", false},
		{"ksa.shop", "", "", false},
		{"ksa.shop.", "", "", false},
		{"projectcalico-default-allow", "", "", false},
	} {
		namespace, account, ok := kubernetes.ProfileOf(c.name)
		require.Equal(t, c.ok, ok, c.name)
		if ok {
			require.Equal(t, [2]string{c.namespace, c.account}, [2]string{namespace, account}, c.name)
		}
	}
}

func TestPodOf(t *testing.T) {
	pod, err := kubernetes.PodOf(api.Key{Name: "node--a-k8s-web--0-eth0"})
	require.NoError(t, err)
	require.Equal(t, "web-0", pod)
	for _, name := range []string{"web-0", "node--a-cni-web--0-eth0", "node--a-k8s-web--0-eth1"} {
		_, err := kubernetes.PodOf(api.Key{Name: name})
		require.ErrorContains(t, err, name)
	}
}

// TestNodeAnnotations writes a node back: what was read from annotations becomes the same annotations, labels that are the
// node's own do not become ours, and what is cleared goes.
func TestNodeAnnotations(t *testing.T) {
	k := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "a", Labels: map[string]string{"rack": "1"}, Annotations: map[string]string{
		"projectcalico.org/IPv4Address": "10.0.0.7/24", "projectcalico.org/ASNumber": "65001", "projectcalico.org/IPv4VXLANTunnelAddr": "10.1.0.1",
		"projectcalico.org/labels": `{"rack":"0","zone":"b"}`, "projectcalico.org/annotations": `{"muslin.net/ipam-epoch":"3"}`, "other": "stays",
	}}}
	n, err := kubernetes.Node(k, false)
	require.NoError(t, err)
	require.Equal(t, map[string]string{"rack": "1", "zone": "b"}, n.Labels)
	require.Equal(t, uint64(3), n.IPAMEpoch())

	n.Labels["new"] = "x"
	n.Annotations["note"] = "y"
	n.Spec.IPv4VXLANTunnelAddr = ""
	n.Status.Kernel = &api.NodeKernel{Features: map[string]string{"ipip": "tunl0"}}
	got := kubernetes.NodeAnnotations(n, k.Labels)
	set := map[string]string{}
	for key, v := range got {
		if v != "" {
			set[key] = v
		}
	}
	require.Equal(t, map[string]string{
		"projectcalico.org/IPv4Address": "10.0.0.7/24", "projectcalico.org/ASNumber": "65001",
		"projectcalico.org/labels":      `{"new":"x","zone":"b"}`,
		"projectcalico.org/annotations": `{"muslin.net/ipam-epoch":"3","note":"y"}`,
		"muslin.net/kernel":             `{"features":{"ipip":"tunl0"}}`,
	}, set)
	require.Contains(t, got, "projectcalico.org/IPv4VXLANTunnelAddr", "what is cleared is named")

	// A document that knows nothing of the node's own labels does not make them ours.
	bare := &api.Node{ObjectMeta: metav1.ObjectMeta{Name: "a", Labels: map[string]string{"rack": "1"}}}
	require.Empty(t, kubernetes.NodeAnnotations(bare, k.Labels)["projectcalico.org/labels"])
}

func TestEndpointAnnotations(t *testing.T) {
	e := &api.WorkloadEndpoint{Spec: api.WorkloadEndpointSpec{ContainerID: "c1", IPNetworks: []string{"10.1.2.3/32", "fd00::3/128"}}}
	require.Equal(t, map[string]string{
		"cni.projectcalico.org/podIP": "10.1.2.3/32", "cni.projectcalico.org/podIPs": "10.1.2.3/32,fd00::3/128", "cni.projectcalico.org/containerID": "c1",
	}, kubernetes.EndpointAnnotations(e))
	require.Equal(t, map[string]string{"cni.projectcalico.org/podIP": "", "cni.projectcalico.org/podIPs": ""}, kubernetes.EndpointAnnotations(nil))
}
