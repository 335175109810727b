package trouble_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/datastore/trouble"
)

var pools = schema.GroupResource{Group: "projectcalico.org", Resource: "ippools"}

func TestReasons(t *testing.T) {
	of := func(err error) error {
		return &datastore.Error{Op: "list", Key: api.Key{Kind: "IPPool"}, Reason: datastore.ErrUnavailable, Err: err}
	}
	for _, c := range []struct {
		err  error
		want trouble.Reason
	}{
		{errors.New("dial tcp 10.96.0.1:443: connection refused"), trouble.Unreachable},
		{of(errors.New("connection refused")), trouble.Unreachable},
		{apierrors.NewServiceUnavailable("not yet"), trouble.Unreachable},
		{apierrors.NewTooManyRequests("later", 1), trouble.Unreachable},
		{apierrors.NewUnauthorized("no"), trouble.Unauthorized},
		{fmt.Errorf("listing: %w", apierrors.NewForbidden(pools, "", errors.New("no role"))), trouble.Forbidden},
		{&datastore.Error{Op: "list", Err: apierrors.NewForbidden(pools, "", errors.New("no role"))}, trouble.Forbidden},
		{apierrors.NewNotFound(pools, ""), trouble.Missing},
		{apierrors.NewInternalError(errors.New("oops")), trouble.Failing},
	} {
		require.Equal(t, c.want, trouble.ReasonOf(c.err), "%v", c.err)
	}
}

// However many kinds fail, and however often, there is one line for each state.
func TestEachStateIsToldOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		var notes []string
		r := prometheus.NewPedanticRegistry()
		b := trouble.NewBoard("typha", func(text string) { notes = append(notes, text) }, r, slog.New(slog.NewTextHandler(&out, nil)))
		after := func(lines int, metrics string) string {
			t.Helper()
			time.Sleep(time.Second)
			synctest.Wait()
			require.Equal(t, lines, strings.Count(out.String(), "\n"), out.String())
			if metrics != "" {
				require.NoError(t, testutil.GatherAndCompare(r, strings.NewReader(
					"# HELP typha_unreadable_kinds Kinds of the datastore and of Kubernetes that cannot be read at present, by reason; what is known of them stays in force.\n# TYPE typha_unreadable_kinds gauge\n"+metrics)))
			}
			last := out.String()
			out.Reset()
			return last
		}
		away := errors.New("connection refused")
		kinds := []string{"IPPool", "Node", "services"}
		for range 3 {
			for _, k := range kinds {
				b.Tell(k, away)
			}
		}
		require.Contains(t, after(1, `typha_unreadable_kinds{reason="Failing"} 0
typha_unreadable_kinds{reason="Forbidden"} 0
typha_unreadable_kinds{reason="Missing"} 0
typha_unreadable_kinds{reason="Unauthorized"} 0
typha_unreadable_kinds{reason="Unreachable"} 3
`), "Unreachable: the API server or etcd does not answer")
		b.Tell("IPPool", away)
		b.Tell("services", nil)
		after(0, "") // part of it answers: the same state, told already
		for _, k := range kinds {
			b.Tell(k, nil)
		}
		require.Contains(t, after(1, ""), "everything can be read again")
		b.Tell("IPPool", apierrors.NewForbidden(pools, "", errors.New("no role")))
		require.Contains(t, after(1, ""), "apply the ClusterRole and the Role of typha (IPPool)")
		b.Tell("Tier", apierrors.NewForbidden(pools, "", errors.New("no role")))
		after(0, "") // health names it, and the log need not
		require.Contains(t, notes[len(notes)-1], "(IPPool, Tier)")
		b.Tell("Tier", nil)
		b.Tell("IPPool", apierrors.NewNotFound(pools, ""))
		require.Contains(t, after(1, ""), "apply the CustomResourceDefinitions (IPPool)")
		b.Tell("IPPool", nil)
		after(1, "")
		b.Tell("IPPool", away)
		b.Tell("IPPool", nil)
		after(0, "") // over before anybody was told
		require.Empty(t, notes[len(notes)-1])
	})
}

// A datastore whose watches wait in silence is asked, and what does not answer is told of, and told of no longer when it does.
func TestSilenceIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var notes []string
		r := prometheus.NewPedanticRegistry()
		b := trouble.NewBoard("typha", func(text string) { notes = append(notes, text) }, r, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		var thawed atomic.Bool
		done := make(chan error)
		go func() {
			done <- b.Keep(ctx, "the datastore", func(ctx context.Context) error {
				if thawed.Load() {
					return nil
				}
				<-ctx.Done()
				return ctx.Err()
			})
		}()
		unreachable := func() float64 {
			all, err := r.Gather()
			require.NoError(t, err)
			for _, m := range all[0].GetMetric() {
				if m.GetLabel()[0].GetValue() == string(trouble.Unreachable) {
					return m.GetGauge().GetValue()
				}
			}
			return -1
		}
		time.Sleep(12 * time.Second)
		synctest.Wait()
		require.InDelta(t, 1, unreachable(), 0)
		require.Len(t, notes, 1)
		require.Contains(t, notes[0], "Unreachable")
		thawed.Store(true)
		time.Sleep(12 * time.Second)
		synctest.Wait()
		require.InDelta(t, 0, unreachable(), 0)
		require.Equal(t, "", notes[len(notes)-1])
		cancel()
		require.NoError(t, <-done)
	})
}
