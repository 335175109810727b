package trouble_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/datastore/trouble"
)

// writer is a function that is written to.
type writer func([]byte)

func (w writer) Write(b []byte) (int, error) { w(b); return len(b), nil }

func TestAFullDatastoreIsToldOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex // guards the next three
		var out bytes.Buffer
		var notes []string
		var now error
		under := func(do func()) { mu.Lock(); defer mu.Unlock(); do() }
		r := prometheus.NewPedanticRegistry()
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() {
			full := func(context.Context) (err error) { under(func() { err = now }); return err }
			note := func(text string) { under(func() { notes = append(notes, text) }) }
			log := slog.New(slog.NewTextHandler(writer(func(b []byte) { under(func() { out.Write(b) }) }), nil))
			ended <- trouble.KeepFull(ctx, "kube-controllers", full, note, r, log)
		}()
		full := fmt.Errorf("etcd: %w: disarm it", datastore.ErrFull)
		for _, step := range []struct {
			err   error
			value int
			notes []string
			lines int
		}{
			{nil, 0, nil, 0},
			{datastore.ErrUnavailable, 0, nil, 0},
			{full, 1, []string{full.Error()}, 1},
			{errors.New("cannot be asked"), 1, []string{full.Error()}, 1},
			{full, 1, []string{full.Error()}, 1},
			{nil, 0, []string{full.Error(), ""}, 2},
		} {
			under(func() { now = step.err })
			time.Sleep(15 * time.Second)
			synctest.Wait()
			require.NoError(t, testutil.GatherAndCompare(r, strings.NewReader(fmt.Sprintf(
				"# HELP kube_controllers_datastore_full 1 if the datastore has no space left and takes no writes; what is known stays in force.\n"+
					"# TYPE kube_controllers_datastore_full gauge\nkube_controllers_datastore_full %d\n", step.value))))
			under(func() {
				require.Equal(t, step.notes, notes)
				require.Equal(t, step.lines, strings.Count(out.String(), "\n"), out.String())
			})
		}
		cancel()
		require.NoError(t, <-ended)
	})
}
