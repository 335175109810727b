package board

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/datastore/embedded"
	"github.com/muslin-net/muslin/kube-controllers/configure"
	"github.com/muslin-net/muslin/kube-controllers/loop"
)

// TestControllersFollowTheConfiguration starts, restarts and stops a controller by its entry alone.
func TestControllersFollowTheConfiguration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		config := NewRunning(configure.Environment{}, configure.Cluster{Etcd: true, Kubernetes: true}, slog.New(slog.DiscardHandler))
		var began []time.Duration
		runs := 0
		fail := make(chan error)
		c := Controller{
			Name: "policy",
			Part: func(s *Spec) any {
				if s.Controllers.Policy == nil {
					return nil
				}
				return s.Controllers.Policy
			},
			Run: func(ctx context.Context, s *Spec) error {
				began = append(began, s.Controllers.Policy.ReconcilerPeriod.Duration)
				runs++
				defer func() { runs-- }()
				select {
				case <-ctx.Done():
					return ctx.Err()
				case err := <-fail:
					return err
				}
			},
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- Run(ctx, config, slog.New(slog.DiscardHandler), c) }()
		set := func(change func(*api.KubeControllersConfiguration)) {
			k := api.NewKubeControllersConfiguration()
			change(k)
			config.set(configure.Effective(k, config.env, config.in))
			synctest.Wait()
		}
		synctest.Wait()
		require.Zero(t, runs, "nothing is known yet")
		set(func(*api.KubeControllersConfiguration) {})
		require.Equal(t, []time.Duration{5 * time.Minute}, began)
		set(func(k *api.KubeControllersConfiguration) { k.Spec.LogSeverityScreen = "Error" })
		require.Len(t, began, 1, "another's part has changed")
		set(func(k *api.KubeControllersConfiguration) {
			k.Spec.Controllers.Policy.ReconcilerPeriod = &metav1.Duration{Duration: time.Minute}
		})
		require.Equal(t, []time.Duration{5 * time.Minute, time.Minute}, began)
		require.Equal(t, 1, runs)
		set(func(k *api.KubeControllersConfiguration) { k.Spec.Controllers.Policy = nil })
		require.Zero(t, runs)
		set(func(*api.KubeControllersConfiguration) {})
		require.Equal(t, 1, runs)
		fail <- errors.New("broken")
		time.Sleep(2 * time.Second)
		synctest.Wait()
		require.Equal(t, 1, runs, "one that failed is started again")
		cancel()
		require.ErrorIs(t, <-done, context.Canceled)
		require.Zero(t, runs)
	})
}

// TestReport creates what is missing and tells what is in effect, by a real datastore.
func TestReport(t *testing.T) {
	c, err := embedded.Open(t.Context(), embedded.Config{Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	store := loop.NewStore(datastore.Validating(c), nil, slog.New(slog.DiscardHandler))
	env, err := configure.ReadEnvironment(func(name string) (string, bool) {
		v, ok := map[string]string{"ENABLED_CONTROLLERS": "node", "LOG_LEVEL": "debug"}[name]
		return v, ok
	})
	require.NoError(t, err)
	config := NewRunning(env, configure.Cluster{Etcd: true, Kubernetes: true}, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 2)
	go func() { done <- config.Follow(ctx, store) }()
	go func() { done <- Report(ctx, store, config, slog.New(slog.DiscardHandler)) }()
	t.Cleanup(func() { cancel(); <-done; <-done })
	stored := func() *api.KubeControllersConfiguration {
		o, err := store.Get(t.Context(), key)
		if err != nil {
			return &api.KubeControllersConfiguration{}
		}
		return o.(*api.KubeControllersConfiguration)
	}
	require.Eventually(t, func() bool { return stored().Status.RunningConfig != nil }, time.Minute, 5*time.Millisecond)
	k := stored()
	require.Equal(t, map[string]string{"ENABLED_CONTROLLERS": "node", "LOG_LEVEL": "debug"}, k.Status.EnvironmentVars)
	require.Equal(t, "Debug", k.Status.RunningConfig.LogSeverityScreen)
	require.Equal(t, "Info", k.Spec.LogSeverityScreen, "what users write is theirs")
	require.Nil(t, k.Status.RunningConfig.Controllers.Policy)
	require.NotNil(t, k.Spec.Controllers.Policy)

	k.Spec.Controllers.Node.SyncLabels = api.Disabled
	require.Eventually(t, func() bool {
		now := stored()
		now.Spec = k.Spec
		_, err := store.Update(t.Context(), now)
		return err == nil
	}, time.Minute, 5*time.Millisecond)
	require.Eventually(t, func() bool {
		s := stored().Status.RunningConfig
		return s != nil && s.Controllers.Node.SyncLabels == api.Disabled
	}, time.Minute, 5*time.Millisecond)
	require.Eventually(t, func() bool { s, _ := config.Now(); return s.Controllers.Node.SyncLabels == api.Disabled }, time.Minute, 5*time.Millisecond)
}
