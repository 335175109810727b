package configure

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
)

func environment(t *testing.T, vars map[string]string) Environment {
	t.Helper()
	e, err := ReadEnvironment(func(name string) (string, bool) { v, ok := vars[name]; return v, ok })
	require.NoError(t, err)
	return e
}

var both = Cluster{Etcd: true, Kubernetes: true}

func TestNothingMeansDefaults(t *testing.T) {
	s := Effective(nil, environment(t, nil), both)
	want := api.NewKubeControllersConfiguration().Spec
	want.Controllers.Migration = nil
	require.Equal(t, &want, s)
	require.Equal(t, 15*time.Minute, s.Controllers.Node.LeakGracePeriod.Duration)
}

func TestEnvironmentBeatsWhatIsStored(t *testing.T) {
	stored := api.NewKubeControllersConfiguration()
	stored.Spec.LogSeverityScreen = "Error"
	stored.Spec.Controllers.LoadBalancer = nil
	before := stored.DeepCopy()
	e := environment(t, map[string]string{
		"LOG_LEVEL": "warn", "HEALTH_ENABLED": "false", "COMPACTION_PERIOD": "1m", "RECONCILER_PERIOD": "30s",
		"ENABLED_CONTROLLERS": " node, profile ,loadbalancer", "SYNC_NODE_LABELS": "false", "AUTO_HOST_ENDPOINTS": "enabled", "OTHER": "x",
	})
	require.Len(t, e.Set, 7)
	require.Equal(t, "node, profile ,loadbalancer", e.Set["ENABLED_CONTROLLERS"])
	s := Effective(stored, e, both)
	require.Equal(t, "Warning", s.LogSeverityScreen)
	require.Equal(t, api.Disabled, s.HealthChecks)
	require.Equal(t, time.Minute, s.EtcdV3CompactionPeriod.Duration)
	c := s.Controllers
	require.Equal(t, 30*time.Second, c.Node.ReconcilerPeriod.Duration)
	require.Equal(t, api.Disabled, c.Node.SyncLabels)
	require.Equal(t, api.Enabled, c.Node.HostEndpoint.AutoCreate)
	require.Equal(t, api.Enabled, c.Node.HostEndpoint.CreateDefaultHostEndpoint)
	require.Equal(t, 30*time.Second, c.Namespace.ReconcilerPeriod.Duration)
	require.Equal(t, api.AssignAllServices, c.LoadBalancer.AssignIPs)
	require.Nil(t, c.Policy)
	require.Nil(t, c.ServiceAccount)
	require.Nil(t, c.WorkloadEndpoint)
	require.Equal(t, before, stored, "what is stored is not changed")
	require.Equal(t, s, Effective(stored, e, both))
}

func TestARemovedEntryDisables(t *testing.T) {
	stored := api.NewKubeControllersConfiguration()
	stored.Spec.Controllers.Node = nil
	e := environment(t, map[string]string{"AUTO_HOST_ENDPOINTS": "enabled", "RECONCILER_PERIOD": "1m", "SYNC_NODE_LABELS": "true"})
	require.Nil(t, Effective(stored, e, both).Controllers.Node)
}

func TestWhatCannotRunIsLeftOut(t *testing.T) {
	kdd := Effective(nil, Environment{}, Cluster{Kubernetes: true})
	require.Nil(t, kdd.Controllers.Policy)
	require.Nil(t, kdd.Controllers.Namespace)
	require.Nil(t, kdd.EtcdV3CompactionPeriod)
	require.NotNil(t, kdd.Controllers.Node)
	require.NotNil(t, kdd.Controllers.LoadBalancer)
	require.Nil(t, kdd.Controllers.Migration)

	alone := Effective(nil, Environment{}, Cluster{Etcd: true})
	require.Nil(t, alone.Controllers.LoadBalancer)
	require.Nil(t, alone.Controllers.WorkloadEndpoint)
	require.NotNil(t, alone.Controllers.Node)
}

func TestMistakesNameVariableAndFix(t *testing.T) {
	for name, c := range map[string]struct{ value, fix string }{
		"LOG_LEVEL":           {"loud", "one of none, debug"},
		"HEALTH_ENABLED":      {"maybe", "true or false"},
		"COMPACTION_PERIOD":   {"-1m", "a duration such as 5m"},
		"RECONCILER_PERIOD":   {"often", "a duration such as 5m"},
		"ENABLED_CONTROLLERS": {"node,flannelmigration", "names out of node"},
		"SYNC_NODE_LABELS":    {"2", "true or false"},
		"AUTO_HOST_ENDPOINTS": {"2", "enabled or disabled"},
	} {
		_, err := ReadEnvironment(func(n string) (string, bool) { return c.value, n == name })
		require.ErrorContains(t, err, name)
		require.ErrorContains(t, err, c.value)
		require.ErrorContains(t, err, c.fix)
	}
}
