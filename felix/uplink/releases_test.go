package uplink_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/muslin-net/muslin/felix/uplink"
)

// typha frees handles, or does not.
type typha struct {
	mu    sync.Mutex
	err   error
	hold  chan struct{} // a call waits for it
	tries []string
	freed []string
}

func (y *typha) free(ctx context.Context, handle string) error {
	y.mu.Lock()
	y.tries = append(y.tries, handle)
	hold, err := y.hold, y.err
	y.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err == nil {
		y.mu.Lock()
		y.freed = append(y.freed, handle)
		y.mu.Unlock()
	}
	return err
}

func (y *typha) set(err error, hold chan struct{}) {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.err, y.hold = err, hold
}

func (y *typha) seen() (tries, freed []string) {
	y.mu.Lock()
	defer y.mu.Unlock()
	return append([]string{}, y.tries...), append([]string{}, y.freed...)
}

func open(t *testing.T, dir string, y *typha) *uplink.Releases {
	t.Helper()
	r, err := uplink.OpenReleases(dir, y.free, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	return r
}

func run(t *testing.T, do func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- do(ctx) }()
	return func() {
		cancel()
		require.NoError(t, <-ended)
	}
}

func records(t *testing.T, dir string) int {
	t.Helper()
	files, err := os.ReadDir(dir)
	require.NoError(t, err)
	return len(files)
}

func TestReleasesOutliveTheProcess(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "releases")
	synctest.Test(t, func(t *testing.T) {
		y := &typha{err: status.Error(codes.Unavailable, "typha is away")}
		r := open(t, dir, y)
		require.NoError(t, r.Add("net.c1"))
		require.NoError(t, r.Add("net.c2"))
		require.Equal(t, 2, records(t, dir))
		stop := run(t, r.Run)
		synctest.Wait()
		tries, _ := y.seen()
		require.NotContains(t, tries, "net.c2", "while typha is away one try tells enough")
		stop()

		again := open(t, dir, y) // a new process
		y.set(nil, nil)
		stop = run(t, again.Run)
		synctest.Wait()
		_, freed := y.seen()
		require.ElementsMatch(t, []string{"net.c1", "net.c2"}, freed)
		require.Zero(t, records(t, dir))
		stop()
	})
}

func TestFailedReleasesAreTriedAgainAndHoldNobodyUp(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "releases")
	synctest.Test(t, func(t *testing.T) {
		y := &typha{err: errors.New("refused")}
		r := open(t, dir, y)
		defer run(t, r.Run)()
		require.NoError(t, r.Add("net.bad"))
		require.NoError(t, r.Add("net.worse"))
		synctest.Wait()
		tries, _ := y.seen()
		require.Contains(t, tries, "net.worse", "one that is refused does not keep others from being freed")
		y.set(nil, nil)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		_, freed := y.seen()
		require.ElementsMatch(t, []string{"net.bad", "net.worse"}, freed)
	})
}

// A typha that does not answer must not delay ADDs and DELs of others; only the handle that is being freed is waited for.
func TestARelaseUnderWayIsWaitedForByItsOwnHandleOnly(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "releases")
	synctest.Test(t, func(t *testing.T) {
		hold := make(chan struct{})
		y := &typha{hold: hold}
		r := open(t, dir, y)
		defer run(t, r.Run)()
		require.NoError(t, r.Add("net.c1"))
		synctest.Wait() // net.c1 is under way
		begin := time.Now()
		require.NoError(t, r.Add("net.c2"))
		require.NoError(t, r.Cancel(t.Context(), "net.c2"))
		require.NoError(t, r.Cancel(t.Context(), "net.c3"))
		require.Zero(t, time.Since(begin))

		impatient, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.ErrorIs(t, r.Cancel(impatient, "net.c1"), context.DeadlineExceeded)
		require.ErrorContains(t, r.Cancel(impatient, "net.c1"), "net.c1 are still being freed")

		outcome := make(chan error, 1)
		go func() { outcome <- r.Cancel(t.Context(), "net.c1") }()
		synctest.Wait()
		require.Empty(t, outcome)
		y.set(nil, nil)
		close(hold)
		require.NoError(t, <-outcome)
		_, freed := y.seen()
		require.Equal(t, []string{"net.c1"}, freed, "what was cancelled is not freed")
		require.Zero(t, records(t, dir))
	})
}

func TestAReleaseThatHangsIsGivenUp(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "releases")
	synctest.Test(t, func(t *testing.T) {
		y := &typha{hold: make(chan struct{})}
		r := open(t, dir, y)
		defer run(t, r.Run)()
		require.NoError(t, r.Add("net.c1"))
		synctest.Wait()
		begin := time.Now()
		require.NoError(t, r.Cancel(t.Context(), "net.c1"))
		require.Equal(t, 5*time.Second, time.Since(begin), "the longest that an ADD waits")
		time.Sleep(time.Minute)
		tries, freed := y.seen()
		require.Equal(t, []string{"net.c1"}, tries)
		require.Empty(t, freed, "it was taken back")
	})
}

// A full disk must not keep pods from ending, nor leak their addresses while felix runs.
func TestAReleaseThatCannotBeStoredIsCarriedOutAllTheSame(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "releases")
	synctest.Test(t, func(t *testing.T) {
		y := &typha{}
		r := open(t, dir, y)
		require.NoError(t, os.RemoveAll(dir))
		require.Error(t, r.Add("net.c1"))
		defer run(t, r.Run)()
		synctest.Wait()
		_, freed := y.seen()
		require.Equal(t, []string{"net.c1"}, freed)
	})
}
