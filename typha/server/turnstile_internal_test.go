package server

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestTurnstile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTurnstile()
		var leave []func()
		for range snapshotsAtOnce {
			l, err := s.pass(t.Context())
			require.NoError(t, err)
			leave = append(leave, l)
		}
		impatient, cancel := context.WithTimeout(t.Context(), snapshotPatience/2)
		defer cancel()
		_, err := s.pass(impatient)
		require.Equal(t, codes.DeadlineExceeded, status.Code(err))
		begin := time.Now()
		leave[0]()
		leave[0]() // once
		again, err := s.pass(t.Context())
		require.NoError(t, err)
		require.Zero(t, time.Since(begin), "a place that was left is free at once")
		_, err = s.pass(t.Context())
		require.NoError(t, err)
		require.Equal(t, snapshotPatience/2, time.Since(begin), "who takes too long loses its place")
		time.Sleep(2 * snapshotPatience)
		again()
		for _, l := range leave {
			l()
		}
		require.Empty(t, s)
	})
}
