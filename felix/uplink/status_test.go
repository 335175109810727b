package uplink_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/felix/uplink"
	"github.com/muslin-net/muslin/typha/client"
)

type statuses struct {
	mu  sync.Mutex
	err error
	got []string
}

func (s *statuses) ReportStatus(_ context.Context, conditions []client.Condition, capabilities map[string]string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	said := fmt.Sprint(capabilities)
	for _, c := range conditions {
		said += fmt.Sprintf(" %s=%t %s %s", c.Type, c.Status, c.Reason, c.Message)
	}
	s.got = append(s.got, said)
	return s.err
}

func (s *statuses) last() (string, int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.got) == 0 {
		return "", 0
	}
	return s.got[len(s.got)-1], len(s.got)
}

func TestTheNodesStatusIsToldAndRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := &statuses{err: errors.New("away")}
		r := uplink.NewStatus(y, slog.New(slog.DiscardHandler))
		defer run(t, r.Run)()
		r.Again()
		synctest.Wait()
		_, n := y.last()
		require.Zero(t, n, "without capabilities it would seem that the kernel has none")
		r.SetTrouble("", "")
		synctest.Wait()
		_, n = y.last()
		require.Zero(t, n)
		r.SetCapabilities(map[string]string{"ipip": "tc BPF"})
		time.Sleep(time.Second)
		synctest.Wait()
		last, n := y.last()
		require.Equal(t, "map[ipip:tc BPF]", last)
		require.GreaterOrEqual(t, n, 2, "tried again")
		y.mu.Lock()
		y.err = nil
		y.mu.Unlock()
		time.Sleep(time.Second)
		synctest.Wait()
		_, n = y.last()
		r.SetCapabilities(map[string]string{"ipip": "kernel module", "vxlan": "yes"})
		synctest.Wait()
		last, after := y.last()
		require.Equal(t, "map[ipip:kernel module vxlan:yes]", last)
		require.Greater(t, after, n)
		time.Sleep(time.Minute)
		synctest.Wait()
		_, later := y.last()
		require.Greater(t, later, after, "a typha that lost it learns it again")
		const kernel = "map[ipip:kernel module vxlan:yes]"
		r.SetTrouble("ProgrammingFails", "rules: no")
		synctest.Wait()
		last, _ = y.last()
		require.Equal(t, kernel+" DataplaneProgrammed=false ProgrammingFails rules: no", last)
		r.SetTrouble("", "")
		synctest.Wait()
		last, _ = y.last()
		require.Equal(t, kernel, last)
	})
}
