package api_test

import (
	"encoding/json"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/muslin-net/muslin/api"
)

// TestEffectiveFelix: defaults, then layers, the narrower over the wider.
func TestEffectiveFelix(t *testing.T) {
	f := api.EffectiveFelix()
	require.Equal(t, 4789, *f.VXLANPort)
	require.Equal(t, int64(0xffff0000), *f.IptablesMarkMask)
	require.Equal(t, 180*time.Second, f.IptablesRefreshInterval.Duration)
	require.Equal(t, "Drop", f.DefaultEndpointToHostAction)
	require.Equal(t, []api.RouteTableIDRange{{Min: 1, Max: 250}}, *f.RouteTableRanges)
	require.Equal(t, []api.Port{{First: 30000, Last: 32767}}, *f.KubeNodePortRanges)
	require.Equal(t, api.DSCP("23"), *f.IstioDSCPMark)
	require.Equal(t, api.DefaultFailsafeInbound(), *f.FailsafeInboundHostPorts)
	require.Contains(t, *f.FailsafeOutboundHostPorts, api.ProtoPort{Protocol: "UDP", Port: 53})
	require.Nil(t, f.IPIPEnabled, "unset has a meaning of its own")
	require.NoError(t, (&api.FelixConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "default"}, Spec: *f}).Validate())

	no, port := false, 4790
	selector := "has(big)"
	cluster := &api.FelixConfigurationSpec{IPv6Support: &no, VXLANPort: &port, ChainInsertMode: "APPEND", FailsafeInboundHostPorts: &[]api.ProtoPort{}}
	selected := &api.FelixConfigurationSpec{NodeSelector: &selector, InterfacePrefix: "tap"}
	other := 4791
	node := &api.FelixConfigurationSpec{VXLANPort: &other}
	f = api.EffectiveFelix(cluster, selected, node)
	require.False(t, *f.IPv6Support)
	require.Equal(t, 4791, *f.VXLANPort)
	require.Equal(t, "Append", f.ChainInsertMode, "the documented spelling")
	require.Equal(t, "tap", f.InterfacePrefix)
	require.Empty(t, *f.FailsafeInboundHostPorts, "an empty list says none")
	require.Nil(t, f.NodeSelector)
	*f.VXLANPort = 1
	require.Equal(t, 4791, *node.VXLANPort, "a layer was changed")
	require.Equal(t, "APPEND", cluster.ChainInsertMode, "a layer was changed")
}

func TestSetFelixParameter(t *testing.T) {
	for _, c := range []struct{ name, value, want string }{
		{"vxlanVNI", "5000", `{"vxlanVNI":5000}`},
		{"VXLANVNI", "5000", `{"vxlanVNI":5000}`},
		{"iptablesMarkMask", "0xff000000", `{"iptablesMarkMask":4278190080}`},
		{"healthEnabled", "TRUE", `{"healthEnabled":true}`},
		{"routeRefreshInterval", "90", `{"routeRefreshInterval":"1m30s"}`},
		{"iptablesLockProbeInterval", "0.05", `{"iptablesLockProbeInterval":"50ms"}`},
		{"netlinkTimeout", "2m", `{"netlinkTimeout":"2m0s"}`},
		{"chainInsertMode", "append", `{"chainInsertMode":"Append"}`},
		{"nftablesMode", "enabled", `{"nftablesMode":"Enabled"}`},
		{"routeTableRanges", "1-5, 10-20", `{"routeTableRanges":[{"min":1,"max":5},{"min":10,"max":20}]}`},
		{"kubeNodePortRanges", "30000:32767,80", `{"kubeNodePortRanges":["30000:32767",80]}`},
		{"natPortRange", "1024:2048", `{"natPortRange":"1024:2048"}`},
		{"externalNodesList", "10.0.0.0/8,10.1.0.1", `{"externalNodesList":["10.0.0.0/8","10.1.0.1"]}`},
		{"failsafeInboundHostPorts", "22, udp:68, tcp:10.0.0.0/8:179, tcp:[fd00::/8]:179", `{"failsafeInboundHostPorts":[{"protocol":"TCP","port":22},{"protocol":"UDP","port":68},{"protocol":"TCP","port":179,"net":"10.0.0.0/8"},{"protocol":"TCP","port":179,"net":"fd00::/8"}]}`},
		{"failsafeInboundHostPorts", "None", `{"failsafeInboundHostPorts":[]}`},
		{"logFilePath", "none", `{}`},
	} {
		t.Run(c.name+"="+c.value, func(t *testing.T) {
			s := &api.FelixConfigurationSpec{LogFilePath: ""}
			require.NoError(t, api.SetFelixParameter(s, c.name, c.value))
			text, err := json.Marshal(s)
			require.NoError(t, err)
			require.JSONEq(t, c.want, string(text))
		})
	}
	for _, c := range []struct{ name, value, want string }{
		{"colour", "blue", "colour: is not a parameter of felix; see the fields of FelixConfiguration"},
		{"vxlanVNI", "many", `vxlanVNI: "many": cannot be read: "many" is not a whole number; write a value like 4096`},
		{"vxlanVNI", "0", "vxlanVNI: 0: is out of range; write a number from 1 to 16777215"},
		{"healthEnabled", "maybe", `healthEnabled: "maybe": cannot be read: "maybe" is neither true nor false; write a value like false`},
		{"chainInsertMode", "sideways", `chainInsertMode: "sideways": is not one of the values of this field; write Insert or Append`},
		{"routeTableRanges", "1", `routeTableRanges: "1": cannot be read: "1" is not a range like 1-250; write a value like 1-250`},
		{"failsafeInboundHostPorts", "tcp", `failsafeInboundHostPorts: "tcp": cannot be read: "tcp" is not a port like 22, tcp:22 or tcp:10.0.0.0/8:22; write a value of the field's type`},
	} {
		s := &api.FelixConfigurationSpec{}
		require.EqualError(t, api.SetFelixParameter(s, c.name, c.value), c.want)
		require.Equal(t, &api.FelixConfigurationSpec{}, s, "a refused value was set")
	}
}

// TestFelixSchema holds what the tags of the parameters demand against the CRD, which is made of the markers above them:
// the two say the same.
func TestFelixSchema(t *testing.T) {
	schema := readCRD(t, api.MustKind("FelixConfiguration")).definition.Spec.Versions[0].Schema.OpenAPIV3Schema.Properties["spec"]
	fields := map[string]reflect.StructTag{}
	for _, f := range reflect.VisibleFields(reflect.TypeFor[api.FelixConfigurationSpec]()) {
		if !f.Anonymous {
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			fields[name] = f.Tag
		}
	}
	require.Len(t, schema.Properties, len(fields))
	require.Len(t, api.FelixParameters(), len(fields))
	number := func(p *float64) string {
		if p == nil {
			return ""
		}
		return strconv.FormatFloat(*p, 'f', -1, 64)
	}
	for name, tag := range fields {
		prop, ok := schema.Properties[name]
		require.True(t, ok, name)
		require.Equal(t, tag.Get("min"), number(prop.Minimum), name)
		require.Equal(t, tag.Get("max"), number(prop.Maximum), name)
		if choices := tag.Get("oneof"); choices != "" {
			require.Equal(t, "^(?i)("+strings.ReplaceAll(choices, " ", "|")+")?$", prop.Pattern, name)
		}
		if pattern := tag.Get("pattern"); pattern != "" {
			require.Equal(t, pattern, prop.Pattern, name)
		}
		if most := tag.Get("maxitems"); most != "" {
			require.Equal(t, most, strconv.FormatInt(*prop.MaxItems, 10), name)
		}
	}
}
