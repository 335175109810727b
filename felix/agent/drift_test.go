package agent

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/felix/dataplane"
)

func drift(kind dataplane.Kind, key, what string) dataplane.Drift {
	return dataplane.Drift{Object: dataplane.Object{Kind: kind, Key: key}, What: what}
}

func TestOneMishapIsOneLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		d := &drifts{log: slog.New(slog.NewTextHandler(&out, nil))}
		d.add(nil)
		for i := range 12 {
			d.add([]dataplane.Drift{drift(dataplane.KindRoute, fmt.Sprintf("10.1.%d.0/26", i), "removed")})
			time.Sleep(time.Millisecond)
		}
		d.add([]dataplane.Drift{drift(dataplane.KindLink, "vxlan.calico", "removed")})
		time.Sleep(time.Second)
		synctest.Wait()
		require.Equal(t, 1, strings.Count(out.String(), "\n"), out.String())
		require.Contains(t, out.String(), "12 routes removed: 10.1.0.0/26, 10.1.1.0/26, ")
		require.Contains(t, out.String(), "; link vxlan.calico removed")
		d.add([]dataplane.Drift{drift(dataplane.KindSet, "x", "changed")})
		time.Sleep(time.Second)
		synctest.Wait()
		require.Equal(t, 2, strings.Count(out.String(), "\n"), "later ones are another mishap")
	})
}

func TestSummary(t *testing.T) {
	var many []dataplane.Drift
	for i := range 30 {
		many = append(many, drift(dataplane.KindRoute, fmt.Sprintf("10.1.%d.0/26", 29-i), "removed"))
	}
	require.Contains(t, summary(append(many, many...)), "30 routes removed: 10.1.0.0/26, 10.1.1.0/26, ")
	require.Contains(t, summary(many), "10.1.19.0/26 and 10 more")
	require.Equal(t, "notifications were lost; route a changed to b", summary([]dataplane.Drift{
		drift("", "", "notifications were lost"), drift(dataplane.KindRoute, "a", "changed to b"),
	}))
}
