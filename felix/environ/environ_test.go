package environ_test

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/environ"
)

// resolved is a configuration as typha sends it.
func resolved(change func(*api.FelixConfigurationSpec)) *api.FelixConfiguration {
	c := &api.FelixConfiguration{Spec: *api.EffectiveFelix()}
	c.Name = "worker-1"
	change(&c.Spec)
	return c
}

func over(t *testing.T, s environ.Settings, c *api.FelixConfiguration) *api.FelixConfigurationSpec {
	t.Helper()
	before := c.DeepCopy()
	node := view.Node{Name: "worker-1"}
	out := s.Over(view.Batch{Updates: []view.Item{view.Resource{Object: c}, node}, InSync: true})
	require.Equal(t, before, c, "what typha sent was changed")
	require.True(t, out.InSync)
	require.Equal(t, node, out.Updates[1])
	return &out.Updates[0].(view.Resource).Object.(*api.FelixConfiguration).Spec
}

// The environment wins over what typha resolved; what it leaves alone stays; names are taken in any case, and as they were
// in earlier versions.
func TestTheEnvironmentWins(t *testing.T) {
	s, problems := environ.Parse([]string{
		"FELIX_VXLANMTU=1400", "Felix_IpInIpMtu=1380", "felix_ipv6support=no", "FELIX_MTUIFACEPATTERN=^bond", "FELIX_FELIXHOSTNAME=worker-1",
		"FELIX_IPTABLESLOCKPROBEINTERVALMILLIS=20", "FELIX_NETLINKTIMEOUTSECS=3", "FELIX_ROUTEREFRESHINTERVAL=7", "FELIX_NATPORTRANGE=none",
		"FELIX_FEATUREDETECTOVERRIDE=ChecksumOffloadBroken=true", "PATH=/bin", "FELIX=1",
	}, "FELIX_FELIXHOSTNAME")
	require.Empty(t, problems)
	got := over(t, s, resolved(func(c *api.FelixConfigurationSpec) {
		c.VXLANMTU, c.VXLANPort, c.NATPortRange = new(9000), new(8472), &api.Port{First: 1, Last: 2}
	}))
	require.Equal(t, 1400, *got.VXLANMTU)
	require.Equal(t, 1380, *got.IPIPMTU)
	require.False(t, *got.IPv6Support)
	require.Equal(t, "^bond", got.MTUIfacePattern)
	require.Equal(t, "20ms", got.IptablesLockProbeInterval.Duration.String())
	require.Equal(t, "3s", got.NetlinkTimeout.Duration.String())
	require.Equal(t, "7s", got.RouteRefreshInterval.Duration.String())
	require.Nil(t, got.NATPortRange)
	require.Equal(t, "ChecksumOffloadBroken=true", got.FeatureDetectOverride)
	require.Equal(t, 8472, *got.VXLANPort, "not in the environment")
	require.Equal(t, []string{
		"featureDetectOverride", "ipipMTU", "iptablesLockProbeInterval", "ipv6Support", "mtuIfacePattern", "natPortRange",
		"netlinkTimeout", "routeRefreshInterval", "vxlanMTU",
	}, s.Names())
}

// Every parameter that has a default can be set by its variable to just that.
func TestEveryParameterHasAVariable(t *testing.T) {
	for _, p := range api.FelixParameters() {
		if p.Default == "" {
			continue
		}
		s, problems := environ.Parse([]string{"FELIX_" + p.Name + "=" + p.Default})
		require.Empty(t, problems, p.Name)
		plain := resolved(func(*api.FelixConfigurationSpec) {})
		require.Equal(t, &plain.Spec, over(t, s, plain), p.Name)
	}
}

// A mistake names the variable, the value and the remedy, and leaves the layer below in force.
func TestMistakesAreNamed(t *testing.T) {
	for variable, want := range map[string]string{
		"FELIX_VXLANMTU=big":                 `environment variable FELIX_VXLANMTU is ignored: vxlanMTU: "big": cannot be read: "big" is not a whole number; write a value like 0`,
		"FELIX_IPINIPMTU=70000":              "environment variable FELIX_IPINIPMTU is ignored: ipipMTU: 70000: is out of range; write a number from 0 to 65535",
		"FELIX_MTUIFACEPATTERN=(":            "environment variable FELIX_MTUIFACEPATTERN is ignored: mtuIfacePattern: \"(\": is not a regular expression",
		"FELIX_FEATUREDETECTOVERRIDE=broken": "environment variable FELIX_FEATUREDETECTOVERRIDE is ignored: featureDetectOverride: \"broken\": is not of the form",
		"FELIX_COLOUR=blue":                  "environment variable FELIX_COLOUR has no effect: felix has no such parameter; remove it, or see the fields of FelixConfiguration",
		"FELIX_NODESELECTOR=all()":           "environment variable FELIX_NODESELECTOR has no effect",
	} {
		s, problems := environ.Parse([]string{variable})
		require.Len(t, problems, 1, variable)
		require.ErrorContains(t, problems[0], want)
		require.Empty(t, s.Names())
	}
	s, problems := environ.Parse([]string{"FELIX_IPIPMTU=1400", "FELIX_IPINIPMTU=1300"})
	require.EqualError(t, errors.Join(problems...), "environment variable FELIX_IPIPMTU is ignored: FELIX_IPINIPMTU sets ipipMTU already; remove one of them")
	require.Equal(t, 1300, *over(t, s, resolved(func(*api.FelixConfigurationSpec) {})).IPIPMTU)
}

func TestWithoutSettingsNothingIsCopied(t *testing.T) {
	b := view.Batch{Updates: []view.Item{view.Resource{Object: resolved(func(*api.FelixConfigurationSpec) {})}}}
	out := environ.Settings{}.Over(b)
	require.Same(t, b.Updates[0].(view.Resource).Object, out.Updates[0].(view.Resource).Object)
}
