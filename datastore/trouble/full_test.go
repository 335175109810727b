package trouble_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/datastore/trouble"
)

func TestAFullDatastoreIsToldOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		var notes []string
		var now error
		r := prometheus.NewPedanticRegistry()
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() {
			ended <- trouble.KeepFull(ctx, "kube-controllers", func(context.Context) error { return now },
				func(text string) { notes = append(notes, text) }, r, slog.New(slog.NewTextHandler(&out, nil)))
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
			now = step.err
			time.Sleep(15 * time.Second)
			synctest.Wait()
			require.NoError(t, testutil.GatherAndCompare(r, strings.NewReader(fmt.Sprintf(
				"# HELP kube_controllers_datastore_full 1 if the datastore has no space left and takes no writes; what is known stays in force.\n"+
					"# TYPE kube_controllers_datastore_full gauge\nkube_controllers_datastore_full %d\n", step.value))))
			require.Equal(t, step.notes, notes)
			require.Equal(t, step.lines, strings.Count(out.String(), "\n"), out.String())
		}
		cancel()
		require.NoError(t, <-ended)
	})
}
