package policysync_test

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/csi/client"
	felixv1 "github.com/muslin-net/muslin/proto/muslin/felix/v1"
)

// patience is for what comes soon on any machine.
const patience = time.Minute

func TestEachPodIsToldItsOwn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.put(shop()...)
	w.publish("web")
	w.publish("db")
	web, db := w.listen("web"), w.listen("db")
	require.Equal(t, []string{"s:1 2", "np/shop/web", "l-web", "k8s/shop/web/eth0", "in sync"}, web.change())
	require.Equal(t, []string{"np/shop/db", "l-db", "k8s/shop/db/eth0", "in sync"}, db.change())
	w.put(view.IPSetDelta{ID: "s:1", Added: members(3)[2:]})
	require.Equal(t, []string{"s:1 +1 -0"}, web.change())
	w.put(view.Policy{ID: "np/shop/web"})
	require.Equal(t, []string{"np/shop/web", "-s:1"}, web.change())
	w.put(view.Policy{ID: "np/shop/db"})
	require.Equal(t, []string{"np/shop/db"}, db.change(), "and nothing before that")
}

func TestWhatARuleSaysOfHTTPIsTold(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.put(shop()...)
	w.publish("web")
	part, err := w.listen("web").stream.Recv()
	require.NoError(t, err)
	http := part.GetItem()[1].GetPolicy().GetIngress()[0].GetHttp()
	require.Equal(t, []string{"GET"}, http.GetMethods())
	require.Equal(t, "/a", http.GetPaths()[0].GetPrefix())
	require.Empty(t, part.GetItem()[1].GetVersion())
}

// A pod may ask before anything is known of it, and before it has a socket.
func TestAPodThatIsEarly(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	started := make(chan listener)
	go func() { started <- w.listen("web") }()
	w.publish("web")
	web := <-started
	w.put(shop()[:5]...)
	w.put(shop()[5:]...)
	require.Contains(t, web.change(), "in sync")
}

func TestVolumesComeAndGo(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.put(shop()...)
	w.publish("web")
	web := w.listen("web")
	web.change()
	w.unpublish("web")
	require.Equal(t, codes.Unavailable, status.Code(web.ended()))
	require.Eventually(t, func() bool { return w.following() == 0 }, patience, 10*time.Millisecond)

	w.publish("web")
	again := w.listen("web")
	require.Contains(t, again.change(), "in sync")

	// The volume becomes another pod's.
	require.NoError(t, w.home.Save("csi-web", pod("db")))
	require.Equal(t, codes.Unavailable, status.Code(again.ended()))
	require.Contains(t, w.listen("web").change(), "k8s/shop/db/eth0")
}

// A felix that is started anew opens the sockets of the volumes that are there; what the one before left is in nobody's way.
func TestAnotherFelix(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.put(shop()...)
	w.publish("web")
	web := w.listen("web")
	web.change()
	w.stop()
	require.Equal(t, codes.Unavailable, status.Code(web.ended()))
	require.NoFileExists(t, w.socket("web"))
	require.DirExists(t, filepath.Dir(w.socket("web")))

	left, err := net.ListenUnix("unix", &net.UnixAddr{Name: w.socket("web"), Net: "unix"}) // as by SIGKILL
	require.NoError(t, err)
	left.SetUnlinkOnClose(false)
	require.NoError(t, left.Close())
	w.start()
	require.Eventually(t, func() bool {
		c, err := net.Dial("unix", w.socket("web"))
		return err == nil && c.Close() == nil
	}, patience, 10*time.Millisecond)
	require.Contains(t, w.listen("web").change(), "in sync")
}

// A pod that can write to its directory cannot have anything else changed, nor keep its socket from coming back.
func TestAPodThatMeddles(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.put(shop()...)
	precious := filepath.Join(t.TempDir(), "precious")
	require.NoError(t, os.WriteFile(precious, nil, 0o600))
	require.NoError(t, w.home.Prepare())
	require.NoError(t, os.MkdirAll(w.home.Directory("csi-web"), 0o755))
	require.NoError(t, os.Symlink(precious, w.socket("web")))
	w.publish("web")
	require.Eventually(t, func() bool {
		found, err := os.Lstat(w.socket("web"))
		return err == nil && found.Mode().Type() == os.ModeSocket && found.Mode().Perm() == 0o666
	}, patience, 10*time.Millisecond)
	found, err := os.Stat(precious)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), found.Mode())

	require.NoError(t, os.Remove(w.socket("web")))
	require.Eventually(t, func() bool {
		c, err := net.Dial("unix", w.socket("web"))
		return err == nil && c.Close() == nil
	}, patience, 10*time.Millisecond)

	// The directory itself is not followed to elsewhere, either.
	elsewhere := t.TempDir()
	require.NoError(t, os.Symlink(elsewhere, w.home.Directory("csi-db")))
	require.NoError(t, w.home.Save("csi-db", pod("db")))
	w.publish("later")
	require.Eventually(t, func() bool { _, err := os.Stat(w.socket("later")); return err == nil }, patience, 10*time.Millisecond)
	left, err := os.ReadDir(elsewhere)
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestWhatAPodMayTakeIsBounded(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.put(shop()...)
	w.publish("web")
	for range 4 {
		w.listen("web").change()
	}
	require.Equal(t, codes.ResourceExhausted, status.Code(w.listen("web").ended()))

	_, err := w.dial("web").Report(t.Context(), &felixv1.ReportRequest{Decisions: []*felixv1.HttpDecision{{Policy: strings.Repeat("x", 100<<10)}}})
	require.Equal(t, codes.ResourceExhausted, status.Code(err))
}

// A large set is told in parts, and one who does not listen meanwhile is told the last state.
func TestALargeSetAndASlowListener(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	items := shop()
	items[0] = view.IPSet{ID: "s:1", Type: view.SetNet, Members: members(100_000)}
	w.put(items...)
	w.publish("web")
	slow := w.listen("web")
	for i := range 2000 {
		w.put(view.IPSetDelta{ID: "s:1", Removed: members(i + 1)[i:]})
	}
	w.put(view.Policy{ID: "np/shop/web"})
	sizes, changes := map[string]bool{}, 0
	for {
		told := slow.change()
		changes++
		for _, text := range told {
			sizes[text] = true
		}
		if told[len(told)-1] == "-s:1" {
			break
		}
	}
	require.Less(t, changes, 1000, "changes are taken together")
	require.Contains(t, sizes, "s:1 8192")
}

func TestReports(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.put(shop()...)
	w.publish("web")
	w.listen("web").change()
	report := func(d ...*felixv1.HttpDecision) error {
		_, err := w.dial("web").Report(t.Context(), &felixv1.ReportRequest{Decisions: d})
		return err
	}
	require.NoError(t, report(&felixv1.HttpDecision{Policy: "np/shop/web", Allowed: 3, Denied: 4}, &felixv1.HttpDecision{Policy: "np/shop/web", Allowed: 1}))
	for _, bad := range []*felixv1.HttpDecision{{Policy: "np/shop/db"}, {Policy: "np/shop/web", Rule: 1}, {Policy: "np/shop/web", Rule: -1}} {
		err := report(&felixv1.HttpDecision{Policy: "np/shop/web", Allowed: 7}, bad)
		require.Equal(t, codes.InvalidArgument, status.Code(err))
		require.ErrorContains(t, err, "does not apply to pod shop/web")
	}
	require.NoError(t, testutil.CollectAndCompare(w.server, strings.NewReader(`
# HELP felix_policy_sync_requests_total HTTP requests that pods' proxies decided on.
# TYPE felix_policy_sync_requests_total counter
felix_policy_sync_requests_total{decision="allowed"} 4
felix_policy_sync_requests_total{decision="denied"} 4
# HELP felix_policy_sync_sockets Pods that can ask for their policy.
# TYPE felix_policy_sync_sockets gauge
felix_policy_sync_sockets 1
# HELP felix_policy_sync_streams Streams by which pods are told their policy.
# TYPE felix_policy_sync_streams gauge
felix_policy_sync_streams 1
`)))
}

// The setting holds at once: pods are served in the new home, and no more in the old one.
func TestTheHomeMoves(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.put(shop()...)
	w.publish("web")
	old := w.listen("web")
	old.change()
	w.server.SetHome("")
	require.Equal(t, codes.Unavailable, status.Code(old.ended()))
	require.Eventually(t, func() bool { _, err := os.Lstat(w.socket("web")); return err != nil }, patience, 10*time.Millisecond)
	w.server.SetHome("not/absolute")
	w.dir += "-2"
	w.home = client.HomeAt(w.dir)
	w.server.SetHome(w.dir)
	w.publish("db")
	require.Contains(t, w.listen("db").change(), "in sync")
}

// A socket's address has room for 107 bytes, a home of any length is served.
func TestALongPath(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.put(shop()...)
	w.dir = filepath.Join(w.dir, strings.Repeat("long", 40))
	w.home = client.HomeAt(w.dir)
	w.server.SetHome(w.dir)
	w.publish("web")
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		var found unix.Stat_t
		require.NoError(c, unix.Lstat(w.socket("web"), &found))
		require.EqualValues(c, unix.S_IFSOCK|0o666, found.Mode) // a socket is there before everybody may use it
	}, patience, 10*time.Millisecond)
}
