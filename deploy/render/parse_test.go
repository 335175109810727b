package render_test

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"

	"github.com/muslin-net/muslin/deploy/render"
	"github.com/muslin-net/muslin/node/install"
)

// descriptions are those of testdata, by file name.
func descriptions(t *testing.T) map[string][]byte {
	t.Helper()
	files, err := filepath.Glob("testdata/good/*.yaml")
	require.NoError(t, err)
	out := map[string][]byte{}
	for _, f := range files {
		if strings.HasSuffix(f, ".values.yaml") {
			continue
		}
		text, err := os.ReadFile(f)
		require.NoError(t, err)
		out[filepath.Base(f)] = text
	}
	require.NotEmpty(t, out)
	return out
}

// difference is what of values is not as in the defaults.
func difference(t *testing.T, v render.Values) string {
	t.Helper()
	toMap := func(v any) (out map[string]any) {
		text, err := yaml.Marshal(v)
		require.NoError(t, err)
		require.NoError(t, yaml.Unmarshal(text, &out))
		return out
	}
	var differ func(have, defaults map[string]any) map[string]any
	differ = func(have, defaults map[string]any) map[string]any {
		out := map[string]any{}
		for key, value := range have {
			if inner, ok := value.(map[string]any); ok {
				if d := differ(inner, defaults[key].(map[string]any)); len(d) > 0 {
					out[key] = d
				}
			} else if !reflect.DeepEqual(value, defaults[key]) {
				out[key] = value
			}
		}
		return out
	}
	defaults := toMap(render.Defaults())
	have := toMap(v)
	env := have["felix"].(map[string]any)["env"].(map[string]any) // a free map: what is added has no default
	for key := range env {
		if _, ok := defaults["felix"].(map[string]any)["env"].(map[string]any)[key]; !ok {
			defaults["felix"].(map[string]any)["env"].(map[string]any)[key] = nil
		}
	}
	text, err := yaml.Marshal(differ(have, defaults))
	require.NoError(t, err)
	return string(text)
}

func TestDescriptions(t *testing.T) {
	for name, text := range descriptions(t) {
		v, err := render.Parse(name, text)
		require.NoError(t, err)
		golden := filepath.Join("testdata/good", strings.TrimSuffix(name, ".yaml")+".values.yaml")
		if *update {
			require.NoError(t, os.WriteFile(golden, []byte(difference(t, v)), 0o644))
		}
		want, err := os.ReadFile(golden)
		require.NoError(t, err)
		require.Equal(t, string(want), difference(t, v), "%s; go test ./deploy/render -run Descriptions -update rewrites %s", name, golden)
		_, err = render.Manifests(v)
		require.NoError(t, err, name)
	}
}

// A description, an overlay of the same meaning, and the chart's defaults are the same manifests.
func TestDescriptionsAreOverlays(t *testing.T) {
	for name, overlay := range map[string]string{"konvoy-ipip.yaml": "ipip", "konvoy-empty.yaml": "ipip"} {
		v, err := render.Parse(name, descriptions(t)[name])
		require.NoError(t, err)
		text, err := os.ReadFile(filepath.Join("../overlays", overlay, "values.yaml"))
		require.NoError(t, err)
		want, err := render.Defaults().With(text)
		require.NoError(t, err)
		require.Equal(t, want, v, name)
	}
	v, err := render.Parse("c.yaml", []byte(strings.ReplaceAll(string(descriptions(t)["konvoy-vxlan.yaml"]), "mtu: 1400", "")))
	require.NoError(t, err)
	text, err := os.ReadFile("../overlays/vxlan/values.yaml")
	require.NoError(t, err)
	want, err := render.Defaults().With(text)
	require.NoError(t, err)
	require.Equal(t, want, v)
}

func TestBadDescriptions(t *testing.T) {
	konvoy := func(calico string) string {
		return "kind: ClusterConfiguration\napiVersion: konvoy.mesosphere.io/v1beta2\nspec:\n  kubernetes:\n    containerNetworking:\n      calico: " + calico
	}
	operator := func(spec string) string {
		return "apiVersion: operator.tigera.io/v1\nkind: Installation\nspec: " + spec
	}
	network := func(text string) string { return operator("\n  calicoNetwork:\n    " + text) }
	pool := func(text string) string { return network("ipPools:\n    - " + text) }
	for _, c := range []struct{ text, says string }{
		{"", "c.yaml: there is neither a ClusterConfiguration (apiVersion konvoy.mesosphere.io/v1beta2) nor an Installation (apiVersion operator.tigera.io/v1) in it"},
		{"a: [", "c.yaml: it is not YAML: line 1: did not find expected node content"},
		{"kind: ClusterConfiguration\napiVersion: konvoy.mesosphere.io/v1alpha1", `there is a ClusterConfiguration of "konvoy.mesosphere.io/v1alpha1", whose form is not known here`},
		{konvoy("{}") + "\n---\n" + konvoy("{}"), "c.yaml:8: a second description of a cluster: the first is in line 1; leave one of them"},

		{konvoy("{encapsulation: geneve}"), `c.yaml:6: spec.kubernetes.containerNetworking.calico.encapsulation: "geneve" is not allowed; use ipip or vxlan`},
		{konvoy("\n        encapsulation: IPIP"), `c.yaml:7: spec.kubernetes.containerNetworking.calico.encapsulation: "IPIP" is not allowed; use ipip or vxlan`},
		{konvoy("{encapsulation: ''}"), `"" is not allowed; use ipip or vxlan`},
		{konvoy("{encapsulation: [ipip]}"), "calico.encapsulation: a text is wanted"},
		{konvoy("{encapsulation: ipip, encapsulation: vxlan}"), "calico.encapsulation: it is there twice; leave one of them"},
		{konvoy("\n        version: v3\n        encapsulatoin: vxlan"), "c.yaml:8: spec.kubernetes.containerNetworking.calico: encapsulatoin is not known; did you mean encapsulation?"},
		{konvoy("{encapsulation: vxlan, MTU: 1400}"), "c.yaml:6: spec.kubernetes.containerNetworking.calico: MTU is not known; did you mean mtu?"},
		{konvoy("{version: v3, bgp: {}, nat: x}"), ""},
		{konvoy("vxlan"), "c.yaml:6: spec.kubernetes.containerNetworking.calico: a map is wanted, with encapsulation in it"},
		{konvoy("{mtu: big}"), `calico.mtu: "big" is not allowed; use a number from 0 to 65535`},
		{konvoy("{mtu: -1}"), `calico.mtu: "-1" is not allowed`},
		{konvoy("{}") + "\n    networking: {podSubnet: 192.168.0.0}", `c.yaml:7: spec.kubernetes.networking.podSubnet: "192.168.0.0" is not a range of addresses; write it as 192.168.0.0/16 or fd00::/48`},
		{konvoy("{}") + "\n    networking: {podSubnet: 'fd00::/48'}", `"fd00::/48" is not a range of IPv4`},
		{konvoy("&a {encapsulation: ipip}\nother: *a"), ""},
		{"x: &a ipip\n" + konvoy("{encapsulation: *a}"), "calico.encapsulation: anchors and aliases are not read here; write the value out"},

		{operator("{variantt: Calico}"), "c.yaml:3: spec: variantt is not supported here; did you mean variant?"},
		{operator("{variant: TigeraSecureEnterprise}"), `c.yaml:3: spec.variant: "TigeraSecureEnterprise" is not allowed; use Calico`},
		{operator("{registry: example}"), "spec: registry is not supported here; it may have variant, cni, calicoNetwork"},
		{operator("[]"), "c.yaml:3: spec: a map is wanted; it may have variant"},
		{operator("{cni: {type: AmazonVPC}}"), `spec.cni.type: "AmazonVPC" is not allowed; use Calico`},
		{operator("{cni: {type: Calico, ipam: {type: HostLocal}}}"), `spec.cni.ipam.type: "HostLocal" is not allowed; use Calico`},
		{operator("{cni: {binDir: /opt}}"), "spec.cni: binDir is not supported here"},
		{operator("{imagePullSecrets: pull}"), "spec.imagePullSecrets: a list is wanted"},
		{operator("{imagePullSecrets: [{}]}"), "spec.imagePullSecrets[0]: it has no name; give that of a Secret"},
		{operator("{controlPlaneReplicas: 0}"), `spec.controlPlaneReplicas: "0" is not allowed; use a number from 1 to 100`},
		{operator("{nodeMetricsPort: '9091'}"), `spec.nodeMetricsPort: "9091" is not allowed; use a number from 1 to 65535`},

		{network("bgp: enabled"), `c.yaml:5: spec.calicoNetwork.bgp: "enabled" is not allowed; use Enabled or Disabled`},
		{network("bgp: true"), `"true" is not allowed; use Enabled or Disabled`},
		{network("mtu: 1e9"), `spec.calicoNetwork.mtu: "1e9" is not allowed; use a number from 0 to 65535`},
		{network("hostPorts: Off"), `spec.calicoNetwork.hostPorts: "Off" is not allowed; use Enabled or Disabled`},
		{network("containerIPForwarding: Yes"), `use Disabled or Enabled`},
		{network("linuxDataplane: BPF"), `spec.calicoNetwork.linuxDataplane: "BPF" is not allowed; use Nftables`},
		{network("multiInterfaceMode: Multus"), `spec.calicoNetwork.multiInterfaceMode: "Multus" is not allowed; use None`},
		{network("vpp: {}"), "spec.calicoNetwork: vpp is not supported here"},

		{network("ipPools: {cidr: 10.0.0.0/8}"), "c.yaml:5: spec.calicoNetwork.ipPools: a list is wanted"},
		{pool("{}"), "c.yaml:6: spec.calicoNetwork.ipPools[0]: cidr is missing; give the pool's range of addresses, such as 192.168.0.0/16"},
		{pool("10.0.0.0/8"), "spec.calicoNetwork.ipPools[0]: a map is wanted"},
		{pool("{cidr: 10.0.0.0/33}"), `spec.calicoNetwork.ipPools[0].cidr: "10.0.0.0/33" is not a range of addresses`},
		{pool("{cidr: 10.0.0.1/8}"), `spec.calicoNetwork.ipPools[0].cidr: "10.0.0.1/8" has bits beyond its length; write 10.0.0.0/8`},
		{pool("{cidr: 10.0.0.0/8, encapsulation: ipip}"), `ipPools[0].encapsulation: "ipip" is not allowed; use IPIP, VXLAN, IPIPCrossSubnet, VXLANCrossSubnet or None`},
		{pool("{cidr: 10.0.0.0/8, encapsulation: CrossSubnet}"), `"CrossSubnet" is not allowed`},
		{pool("{cidr: 'fd00::/48', encapsulation: IPIP}"), `"IPIP" is not allowed; use VXLAN, VXLANCrossSubnet or None: IP-in-IP carries IPv4 only`},
		{network("bgp: Disabled\n    ipPools: [{cidr: 10.0.0.0/8, encapsulation: IPIP}]"), `"IPIP" is not allowed; use VXLAN or VXLANCrossSubnet, or set bgp to Enabled: nobody else brings the routes that IPIP needs`},
		{network("bgp: Disabled\n    ipPools: [{cidr: 10.0.0.0/8, encapsulation: None}]"), `nobody else brings the routes that None needs`},
		{pool("{cidr: 10.0.0.0/8, natOutgoing: true}"), `ipPools[0].natOutgoing: "true" is not allowed; use Enabled or Disabled`},
		{pool("{cidr: 10.0.0.0/8, nodeSelector: 'all('}"), "spec.calicoNetwork.ipPools[0]: "},
		{pool("{cidr: 10.0.0.0/8, blockSize: 19}"), "c.yaml:6: spec.calicoNetwork.ipPools[0]: "},
		{pool("{cidr: 10.0.0.0/8, blockSize: 0}"), `ipPools[0].blockSize: "0" is not allowed; use a number from 1 to 128`},
		{pool("{cidr: 10.0.0.0/30}"), "spec.calicoNetwork.ipPools[0]: "},
		{pool("{cidr: 169.254.0.0/16}"), "spec.calicoNetwork.ipPools[0]: "},
		{pool("{cidr: 10.0.0.0/8, disableBGPExport: Enabled}"), `ipPools[0].disableBGPExport: "Enabled" is not allowed; use true or false`},
		{pool("{cidr: 10.0.0.0/8, name: Bad_Name}"), "spec.calicoNetwork.ipPools[0]: "},
		{pool("{cidr: 10.0.0.0/8, encapsulaton: IPIP}"), "did you mean encapsulation?"},
		{pool("{cidr: 10.0.0.0/8}\n    - {cidr: 10.1.0.0/16}"), "c.yaml:7: spec.calicoNetwork.ipPools[1]: its cidr 10.1.0.0/16 overlaps with that of another pool, 10.0.0.0/8"},
		{pool("{cidr: 10.0.0.0/16, name: a}\n    - {cidr: 10.1.0.0/16, name: a}"), "ipPools[1]: another pool has the name a, too"},

		{network("nodeAddressAutodetectionV4: first-found"), "spec.calicoNetwork.nodeAddressAutodetectionV4: a map is wanted"},
		{network("nodeAddressAutodetectionV4: {firstfound: true}"), "did you mean firstFound?"},
		{network("nodeAddressAutodetectionV4: {firstFound: 'true'}"), `nodeAddressAutodetectionV4.firstFound: "true" is not allowed; use true or false`},
		{network("nodeAddressAutodetectionV4: {firstFound: true, canReach: 10.0.0.1}"), "nodeAddressAutodetectionV4.canReach: spec.calicoNetwork.nodeAddressAutodetectionV4.firstFound is given, too; leave one of them"},
		{network("nodeAddressAutodetectionV4: {kubernetes: InternalIP}"), `"InternalIP" is not allowed; use NodeInternalIP`},
		{network("nodeAddressAutodetectionV4: {interface: 'eth('}"), `nodeAddressAutodetectionV4.interface: autodetection method "interface=eth("`},
		{network("nodeAddressAutodetectionV4: {interface: ''}"), "nodeAddressAutodetectionV4.interface: it is empty; leave it out"},
		{network("nodeAddressAutodetectionV4: {cidrs: []}"), "nodeAddressAutodetectionV4.cidrs: it is empty"},
		{network("nodeAddressAutodetectionV4: {cidrs: [ten]}"), `nodeAddressAutodetectionV4.cidrs[0]: "ten" is not a range of addresses`},
	} {
		_, err := render.Parse("c.yaml", []byte(c.text))
		if c.says == "" {
			require.NoError(t, err, c.text)
			continue
		}
		require.ErrorContains(t, err, c.says, c.text)
		require.Regexp(t, regexp.MustCompile(`^c\.yaml:(\d+:)? `), err.Error())
	}
}

// What a user's values may not say.
func TestValuesThatDoNotExist(t *testing.T) {
	for text, says := range map[string]string{
		"backedn: vxlan":        `unknown field "backedn"; deploy/chart/values.yaml lists what there is`,
		"ipv4Pool: {mtu: 1}":    `unknown field "mtu"`,
		"typha: {replicas: x}":  "cannot unmarshal string",
		"typha: {replicas: [}":  "values: ",
		"typha:\n\treplicas: 1": "values: ",
	} {
		_, err := render.Defaults().With([]byte(text))
		require.ErrorContains(t, err, says, text)
	}
}

// classicEdit is what the guides for Calico's manifest say of VXLAN without BGP, done as with a text editor.
func classicEdit(manifest string) string {
	lines := strings.Split(manifest, "\n")
	for i, l := range lines {
		switch {
		case strings.Contains(l, "calico_backend:"):
			lines[i] = strings.Replace(l, "bird", "vxlan", 1)
		case strings.Contains(l, "name: CALICO_IPV4POOL_IPIP"):
			lines[i+1] = strings.Replace(lines[i+1], "Always", "Never", 1)
		case strings.Contains(l, "name: CALICO_IPV4POOL_VXLAN"):
			lines[i+1] = strings.Replace(lines[i+1], "Never", "Always", 1)
		}
	}
	return strings.Join(slices.DeleteFunc(lines, func(l string) bool {
		return strings.Contains(l, "-bird-live") || strings.Contains(l, "-bird-ready")
	}), "\n")
}

func TestTheClassicEditIsTheOverlay(t *testing.T) {
	text, err := os.ReadFile("../overlays/vxlan/values.yaml")
	require.NoError(t, err)
	v, err := render.Defaults().With(text)
	require.NoError(t, err)
	v.ClusterType = render.Defaults().ClusterType // guides leave it
	want, err := render.Manifests(v)
	require.NoError(t, err)
	base, err := render.Manifests(render.Defaults())
	require.NoError(t, err)
	for i := range base {
		var have, wanted []any
		for out, text := range map[*[]any]string{&have: classicEdit(string(base[i].Text)), &wanted: string(want[i].Text)} {
			for d := range strings.SplitSeq(text, "\n---\n") {
				var o any
				require.NoError(t, yaml.Unmarshal([]byte(d), &o))
				*out = append(*out, o)
			}
		}
		require.Equal(t, wanted, have, base[i].Name)
	}
}

// The network configuration in the manifests is one that a node can install.
func TestTheNetworkConfigurationIsWhole(t *testing.T) {
	overlays, err := filepath.Glob("../overlays/*/values.yaml")
	require.NoError(t, err)
	all := map[string]render.Values{}
	for _, f := range overlays {
		text, err := os.ReadFile(f)
		require.NoError(t, err)
		all[f], err = render.Defaults().With(text)
		require.NoError(t, err)
	}
	for name, text := range descriptions(t) {
		all[name], err = render.Parse(name, text)
		require.NoError(t, err)
	}
	for name, v := range all {
		files, err := render.Manifests(v)
		require.NoError(t, err)
		found := false
		for _, f := range files {
			if f.Name != "config.yaml" {
				continue
			}
			var config struct{ Data map[string]string }
			require.NoError(t, yaml.Unmarshal(f.Text, &config))
			_, err := install.Conflist(config.Data["cni_network_config"], func(string) string { return "1" })
			require.NoError(t, err, name)
			found = true
		}
		require.True(t, found)
	}
}

// Whatever the text: an error begins with the file's name, and what is taken can be installed.
func FuzzParse(f *testing.F) {
	files, err := filepath.Glob("testdata/good/*.yaml")
	require.NoError(f, err)
	for _, name := range files {
		text, err := os.ReadFile(name)
		require.NoError(f, err)
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		v, err := render.Parse("c.yaml", text)
		if err != nil {
			require.Regexp(t, `^c\.yaml:`, err.Error())
			return
		}
		manifests, err := render.Manifests(v)
		require.NoError(t, err)
		for _, m := range manifests {
			for d := range strings.SplitSeq(string(m.Text), "\n---\n") {
				var o any
				require.NoError(t, yaml.Unmarshal([]byte(d), &o), fmt.Sprintf("%s:\n%s", m.Name, d))
			}
		}
	})
}
