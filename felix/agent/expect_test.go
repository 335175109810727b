package agent_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api/view"
)

// An endpoint that is being made is reported, so that its policy comes meanwhile, and nothing of it is programmed.
func TestAnExpectedEndpointIsReportedAndNotProgrammed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t)
		r.sync()
		synctest.Wait()
		last := func() (out []string) {
			for _, e := range r.local[len(r.local)-1] {
				out = append(out, e.Interface)
			}
			return out
		}
		programmed := func() int { return see(r.kernel, func(k *kernel) int { return len(k.links) }) }
		e := pod("new", "10.1.0.3")
		r.Expect(t.Context(), e)
		synctest.Wait()
		require.Equal(t, []string{"calinew"}, last())
		require.Zero(t, programmed())
		told := len(r.local)
		require.NoError(t, r.SetLocal(t.Context(), e))
		require.Len(t, r.local, told, "it was reported like this")
		require.Equal(t, []string{"calinew"}, last())
		require.Equal(t, 1, programmed())
		e.MTU++
		require.NoError(t, r.SetLocal(t.Context(), e))
		require.Len(t, r.local, told+1)
		require.NoError(t, r.DeleteLocal(t.Context(), e.Interface))
		require.Empty(t, last())

		r.Expect(t.Context(), e)
		require.NoError(t, r.DeleteLocal(t.Context(), e.Interface), "its making failed")
		require.Empty(t, last())
	})
}

// The policy of an endpoint that is being made is waited for, and when it has come all is programmed at once.
func TestAnEndpointIsOpenFromTheStartIfItsPolicyIsForeseen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t)
		r.sync()
		synctest.Wait()
		e := pod("a", "10.1.0.2")
		begin := time.Now()
		soon, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		r.Foreseen(soon, e)
		require.Equal(t, time.Second, time.Since(begin), "nothing comes")

		begin = time.Now()
		time.AfterFunc(time.Millisecond, func() { r.sync(e) })
		r.Foreseen(t.Context(), e)
		require.Equal(t, time.Millisecond, time.Since(begin))
		require.NoError(t, r.SetLocal(t.Context(), e))
		require.NoError(t, r.WaitOpen(t.Context(), e.Interface))
		require.Equal(t, time.Millisecond, time.Since(begin))
		r.Foreseen(t.Context(), e)
	})
}

// Somebody who only looks does not have the kernel gone through.
func TestLookingCostsNoApply(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t)
		r.sync()
		require.NoError(t, r.SetLocal(t.Context(), pod("a", "10.1.0.2")))
		synctest.Wait()
		applies := func() int { return see(r.kernel, func(k *kernel) int { return k.applies }) }
		before := applies()
		for range 10 {
			_, err := r.Local(t.Context())
			require.NoError(t, err)
		}
		require.Equal(t, before, applies())
		require.NoError(t, r.Verify(t.Context(), pod("a", "10.1.0.2")))
		require.Equal(t, before+1, applies(), "a check reads the kernel anew")
		require.ErrorContains(t, r.Verify(t.Context(), pod("b", "10.1.0.3")), "calib is not there")
	})
}

// A pod of which typha will tell is waited for, and not for long; one that typha knows nothing of, as there is no Kubernetes, is not.
func TestAPodThatTyphaWillTellOfIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t)
		r.sync()
		e := pod("a", "10.1.0.2")
		e.UID = "u1"
		begin := time.Now()
		got, err := r.Asked(t.Context(), e)
		require.NoError(t, err)
		require.Nil(t, got)
		require.Zero(t, time.Since(begin))

		r.FollowsPods(true)
		got, err = r.Asked(t.Context(), e)
		require.NoError(t, err)
		require.Nil(t, got, "it is made all the same")
		require.Equal(t, 2*time.Second, time.Since(begin))

		want := &view.AddressRequest{MAC: "02:00:00:00:00:01"}
		begin = time.Now()
		time.AfterFunc(time.Second, func() {
			r.Batch(t.Context(), view.Batch{Updates: []view.Item{view.WorkloadEndpoint{ID: e.ID, UID: "u1", Request: want}}}, nil)
		})
		got, err = r.Asked(t.Context(), e)
		require.NoError(t, err)
		require.Equal(t, want, got)
		require.Equal(t, time.Second, time.Since(begin))

		ended, cancel := context.WithCancel(t.Context())
		cancel()
		e.UID = "u2"
		_, err = r.Asked(ended, e)
		require.ErrorIs(t, err, context.Canceled)
	})
}

// What a pod asks for is known by its UID: its predecessor of the same name may have asked for something else.
func TestWhatAPodAsksFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t)
		r.sync()
		e := pod("a", "10.1.0.2")
		e.UID = "u1"
		want := &view.AddressRequest{MAC: "02:00:00:00:00:01"}
		r.Batch(t.Context(), view.Batch{Updates: []view.Item{view.WorkloadEndpoint{ID: e.ID, UID: "u1", Request: want}}}, nil)
		got, err := r.Asked(t.Context(), e)
		require.NoError(t, err)
		require.Equal(t, want, got)
		for _, uid := range []string{"u2", ""} {
			e.UID = uid
			got, err = r.Asked(t.Context(), e)
			require.NoError(t, err)
			require.Nil(t, got)
		}
	})
}
