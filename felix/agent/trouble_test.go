package agent_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/agent"
	"github.com/muslin-net/muslin/felix/dataplane"
)

// alarms are the metrics that are not zero.
func alarms(t *testing.T, a *agent.Agent) string {
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(agent.Alarms{Agent: a})
	families, err := registry.Gather()
	require.NoError(t, err)
	var out []string
	for _, f := range families {
		require.Len(t, f.GetMetric(), 6, "%s is there for every driver from the start", f.GetName())
		for _, m := range f.GetMetric() {
			if v := m.GetCounter().GetValue() + m.GetGauge().GetValue(); v != 0 {
				out = append(out, fmt.Sprintf("%s{%s} %.1f", strings.TrimPrefix(f.GetName(), "felix_int_dataplane_"), m.GetLabel()[0].GetValue(), v))
			}
		}
	}
	return strings.Join(out, ", ")
}

func (r *rig) told() []string { r.mu.Lock(); defer r.mu.Unlock(); return r.troubles }

// What the kernel refuses raises metrics at once, and a condition when it lasts; both end with the first success.
func TestWhatTheKernelRefusesIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t)
		r.sync(pod("a", "10.1.0.2"))
		synctest.Wait()
		require.Empty(t, alarms(t, r.Agent))
		r.kernel.breaks(broken("rule calia"))
		require.ErrorContains(t, r.SetLocal(impatient(t), pod("a", "10.1.0.2")), "rules are not all programmed")
		require.Equal(t, "failing_seconds{rules} 0.0, failures{rules} 1.0", alarms(t, r.Agent))
		time.Sleep(time.Second)
		synctest.Wait()
		require.Equal(t, "failing_seconds{rules} 1.0, failures{rules} 4.0", alarms(t, r.Agent), "tried after 0.1, 0.3 and 0.7 s")
		require.Empty(t, r.told(), "it may pass")
		time.Sleep(10 * time.Second)
		synctest.Wait()
		require.Equal(t, []string{"ProgrammingFails: rules: rule calia: no"}, r.told(), "said once")

		r.kernel.breaks(nil)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		require.Equal(t, ": ", r.told()[1])
		require.Equal(t, "failures{rules} 7.0", alarms(t, r.Agent), "the count stays")
		r.kernel.breaks(broken("10.1.0.3"))
		require.Error(t, r.SetLocal(impatient(t), pod("b", "10.1.0.3")))
		r.kernel.breaks(nil)
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Len(t, r.told(), 2, "nobody is told of what passes")
		require.Equal(t, "failures{route} 1.0, failures{rules} 7.0", alarms(t, r.Agent))
	})
}

// Words that change with each attempt do not change the condition each time; several drivers are named in order, and a
// set beyond its limit has a reason of its own.
func TestWhatIsToldOfTroubles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t)
		r.sync(pod("a", "10.1.0.2"))
		synctest.Wait()
		n := 0
		r.kernel.breaks(func(object string) error {
			if strings.Contains(object, "rule calia") {
				n++
				return fmt.Errorf("attempt %d", n)
			}
			return nil
		})
		require.Error(t, r.SetLocal(impatient(t), pod("a", "10.1.0.2")))
		time.Sleep(time.Minute)
		synctest.Wait()
		require.LessOrEqual(t, len(r.told()), 6)
		require.Greater(t, len(r.told()), 2, "the latest is told in the end")
		r.kernel.breaks(func(object string) error {
			switch {
			case strings.Contains(object, "rule calia"):
				return &dataplane.SetLimitError{Members: 5, Limit: 4}
			case strings.Contains(object, "10.7.7.0"):
				return errors.New(strings.Repeat("x", 600))
			}
			return nil
		})
		r.Batch(t.Context(), ownBlocks("10.7.7.0/26"), nil)
		time.Sleep(time.Minute)
		synctest.Wait()
		last := r.told()[len(r.told())-1]
		require.Contains(t, last, "SetTooLarge: route: route 10.7.7.0/26")
		require.Less(t, len(last), 550)
		r.Batch(t.Context(), view.Batch{Removes: []view.Key{{Kind: view.KindRoute, ID: "10.7.7.0/26@worker-1"}}}, nil)
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Equal(t, "SetTooLarge: rules: rule calia: 5 members, and no set may have more than 4 (maxIpsetSize); rules that name it drop", r.told()[len(r.told())-1])
	})
}
