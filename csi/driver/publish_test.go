package driver

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestKilledAtAnyStep(t *testing.T) { killed(t, newTable()) }

func TestAVolumeComesAndGoes(t *testing.T) {
	m := newTable()
	w := newWorld(t, m)
	require.NoError(t, w.publish(w.request("csi-1")))
	it := w.volume("csi-1")
	require.NoError(t, w.whole(it))
	require.True(t, m.mounted[filepath.Join(it.target, inside)][0].readOnly, "the pod cannot put anything in the socket's place")
	require.False(t, m.mounted[it.target][0].readOnly)
	require.NoError(t, w.publish(w.request("csi-1")), "asked once more")
	require.NoError(t, w.whole(it))
	require.NoError(t, w.unpublish("csi-1"))
	require.NoError(t, w.nothing(it))
	require.NoError(t, w.unpublish("csi-1"), "asked once more")
	require.NoError(t, w.unpublish("never-there"))
}

func TestAReadOnlyVolume(t *testing.T) {
	m := newTable()
	w := newWorld(t, m)
	req := w.request("ro")
	req.Readonly = true
	require.NoError(t, w.publish(req))
	require.True(t, m.mounted[req.GetTargetPath()][0].readOnly)
	require.NoError(t, w.publish(req))
	require.NoError(t, w.unpublish("ro"))
}

// What the pod's process or felix left in the directory goes with it.
func TestWhatIsInTheDirectoryGoesWithIt(t *testing.T) {
	w := newWorld(t, newTable())
	require.NoError(t, w.publish(w.request("a")))
	elsewhere := filepath.Join(t.TempDir(), "precious")
	require.NoError(t, os.WriteFile(elsewhere, nil, 0o600))
	dir := w.home.Directory("a")
	require.NoError(t, os.Symlink(filepath.Dir(elsewhere), filepath.Join(dir, "link")))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "socket"), nil, 0o600))
	require.NoError(t, w.unpublish("a"))
	require.NoError(t, w.nothing(w.volume("a")))
	require.FileExists(t, elsewhere)
}

func TestAVolumeOfAnotherPodIsLeftAlone(t *testing.T) {
	w := newWorld(t, newTable())
	require.NoError(t, w.publish(w.request("a")))
	req := w.request("a")
	req.VolumeContext[attributeUID] = "another"
	err := w.publish(req)
	require.Equal(t, codes.AlreadyExists, status.Code(err))
	require.ErrorContains(t, err, "belongs to pod shop/pod-a (uid uid-a)")
	require.NoError(t, w.whole(w.volume("a")))
}

// A volume whose mounts or directory are gone, as after a reboot, is made anew; and so is a record that cannot be read.
func TestWhatIsMissingIsMended(t *testing.T) {
	m := newTable()
	w := newWorld(t, m)
	it := w.volume("a")
	for name, spoil := range map[string]func() error{
		"reboot":    func() error { m.mounted = map[string][]entry{}; return os.RemoveAll(filepath.Join(it.target, inside)) },
		"directory": func() error { return os.RemoveAll(w.home.Directory("a")) },
		"home":      func() error { return os.RemoveAll(filepath.Dir(w.home.Records)) },
		"record":    func() error { return os.WriteFile(filepath.Join(w.home.Records, "a.json"), []byte("{"), 0o600) },
		"twice": func() error { // as Calico's driver mounted
			return errors.Join(m.bind(w.home.Directory("a"), filepath.Join(it.target, inside)), m.unmount(filepath.Join(it.target, inside)))
		},
	} {
		require.NoError(t, w.publish(w.request("a")), name)
		require.NoError(t, spoil(), name)
		require.NoError(t, w.publish(w.request("a")), name)
		require.NoError(t, w.whole(it), name)
	}
	require.NoError(t, m.bind(w.home.Directory("a"), filepath.Join(it.target, inside)))
	require.NoError(t, w.unpublish("a"))
	require.NoError(t, w.nothing(it), "what was mounted twice is gone twice")
}

// An error is final for kubelet: nothing is left then, or the code says that something may be.
func TestFailuresLeaveNothing(t *testing.T) {
	for _, op := range []string{"at", "tmpfs", "bind", "readOnly"} {
		m := newTable()
		w := newWorld(t, m)
		m.fail[op] = errors.New("out of order")
		err := w.publish(w.request("a"))
		require.ErrorContains(t, err, "out of order", op)
		if op == "at" { // nor can it be seen what there is
			require.Equal(t, codes.Unavailable, status.Code(err))
		} else {
			require.Equal(t, codes.Internal, status.Code(err), op)
			require.NoError(t, w.nothing(w.volume("a")), op)
		}
		delete(m.fail, op)
		require.NoError(t, w.publish(w.request("a")), op)
		require.NoError(t, w.whole(w.volume("a")), op)

		m.fail[op] = errors.New("out of order")
		_ = w.publish(w.request("a"))
		delete(m.fail, op)
		require.NoError(t, w.whole(w.volume("a")), "%s: a pod may be using it", op)
	}
	m := newTable()
	w := newWorld(t, m)
	m.fail["bind"], m.fail["unmount"] = errors.New("no"), errors.New("busy")
	err := w.publish(w.request("a"))
	require.Equal(t, codes.Unavailable, status.Code(err))
	require.ErrorContains(t, err, "busy")
	require.ErrorContains(t, w.unpublish("a"), "unmounting the target")
	m.fail = map[string]error{}
	require.NoError(t, w.unpublish("a"))
	require.NoError(t, w.nothing(w.volume("a")))
}

func TestWhatIsAnothersIsLeftAlone(t *testing.T) {
	m := newTable()
	w := newWorld(t, m)
	target := w.target("a")
	require.NoError(t, os.Mkdir(target, 0o700))
	m.mounted[target] = []entry{{kind: "xfs"}}
	require.ErrorContains(t, w.publish(w.request("a")), "a file system of type xfs is mounted at "+target)
	require.ErrorContains(t, w.unpublish("a"), "a file system of type xfs is mounted at "+target)
	require.Len(t, m.mounted[target], 1)
	delete(m.mounted, target)

	require.NoError(t, os.WriteFile(filepath.Join(target, "data"), nil, 0o600))
	require.ErrorContains(t, w.unpublish("a"), "removing the target: "+target)
	require.FileExists(t, filepath.Join(target, "data"))

	require.NoError(t, os.RemoveAll(target))
	require.NoError(t, os.Symlink(t.TempDir(), target))
	require.ErrorContains(t, w.publish(w.request("a")), "is there and is no directory")
}

func TestBadRequests(t *testing.T) {
	w := newWorld(t, newTable())
	without := func(key string) func(*csi.NodePublishVolumeRequest) {
		return func(r *csi.NodePublishVolumeRequest) { delete(r.VolumeContext, key) }
	}
	with := func(key, value string) func(*csi.NodePublishVolumeRequest) {
		return func(r *csi.NodePublishVolumeRequest) { r.VolumeContext[key] = value }
	}
	target := func(path string) func(*csi.NodePublishVolumeRequest) {
		return func(r *csi.NodePublishVolumeRequest) { r.TargetPath = path }
	}
	id := func(id string) func(*csi.NodePublishVolumeRequest) {
		return func(r *csi.NodePublishVolumeRequest) { r.VolumeId = id }
	}
	require.NoError(t, os.MkdirAll(filepath.Join(w.kubelet, "pods/other/volumes/v"), 0o755))
	require.NoError(t, w.home.Prepare())
	for _, c := range []struct {
		name  string
		spoil func(*csi.NodePublishVolumeRequest)
		want  string
	}{
		{"no id", id(""), "the volume id is missing"},
		{"an id that leads away", id("../../etc"), "cannot be the name of a directory"},
		{"an id with a slash", id("a/b"), "cannot be the name of a directory"},
		{"a long id", id(strings.Repeat("x", 200)), "at most 128"},
		{"no target", target(""), "target_path is missing"},
		{"a relative target", target("var/lib"), "write an absolute path"},
		{"a target that climbs", target(w.kubelet + "/a/../b"), "write an absolute path, without . or .."},
		{"the root", target("/"), "write an absolute path"},
		{"a target without a parent", target(w.kubelet + "/no/such/mount"), "its parent cannot be used"},
		{"a target in the home", target(w.home.Mounts + "/x"), "where the driver keeps what it has"},
		{"a target above the home", target(filepath.Dir(w.home.Mounts)), "where the driver keeps what it has"},
		{"no capability", func(r *csi.NodePublishVolumeRequest) { r.VolumeCapability = nil }, "volume_capability: the access type is missing"},
		{"a block device", func(r *csi.NodePublishVolumeRequest) {
			r.VolumeCapability.AccessType = &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}}
		}, "a block device is asked for"},
		{"a file system", func(r *csi.NodePublishVolumeRequest) { r.VolumeCapability.GetMount().FsType = "ext4" }, `fsType "ext4"`},
		{"no pod", without(attributePod), attributePod + " is missing; set podInfoOnMount: true"},
		{"no namespace", without(attributeNS), attributeNS + " is missing"},
		{"no uid", without(attributeUID), attributeUID + " is missing"},
		{"no account", without(attributeAccount), attributeAccount + " is missing"},
		{"an empty pod", with(attributePod, ""), `"" is not the name of a pod`},
		{"a pod that leads away", with(attributePod, "../x"), `"../x" is not the name of a pod`},
		{"a persistent volume", with(attributeLifetime, "false"), "ephemeral volumes only"},
		{"another pod's directory", target(filepath.Join(w.kubelet, "pods/other/volumes/v/mount")), `"uid-a" is not the pod that target_path`},
	} {
		req := w.request("a")
		c.spoil(req)
		err := w.publish(req)
		require.Equal(t, codes.InvalidArgument, status.Code(err), "%s: %v", c.name, err)
		require.ErrorContains(t, err, c.want, c.name)
	}
	entries, err := os.ReadDir(w.home.Mounts)
	require.NoError(t, err)
	require.Empty(t, entries)

	for path, want := range map[string]string{"": "target_path is missing", "a/b": "absolute", w.kubelet + "/../x": "absolute"} {
		_, err := w.driver.NodeUnpublishVolume(t.Context(), &csi.NodeUnpublishVolumeRequest{VolumeId: "a", TargetPath: path})
		require.Equal(t, codes.InvalidArgument, status.Code(err))
		require.ErrorContains(t, err, want)
	}
	_, err = w.driver.NodeUnpublishVolume(t.Context(), &csi.NodeUnpublishVolumeRequest{VolumeId: "../a", TargetPath: w.kubelet + "/x"})
	require.Equal(t, codes.InvalidArgument, status.Code(err))
}

// kubelet's directory may be gone before its volumes are unpublished, and may be reached by a symbolic link.
func TestTargetsByOtherWays(t *testing.T) {
	w := newWorld(t, newTable())
	require.NoError(t, w.publish(w.request("a")))
	link := filepath.Join(filepath.Dir(w.kubelet), "link")
	require.NoError(t, os.Symlink(w.kubelet, link))
	_, err := w.driver.NodeUnpublishVolume(t.Context(), &csi.NodeUnpublishVolumeRequest{VolumeId: "a", TargetPath: filepath.Join(link, "a", "mount")})
	require.NoError(t, err)
	require.NoError(t, w.nothing(w.volume("a")))

	require.NoError(t, w.home.Prepare())
	require.NoError(t, os.Mkdir(w.home.Directory("b"), 0o755))
	_, err = w.driver.NodeUnpublishVolume(t.Context(), &csi.NodeUnpublishVolumeRequest{VolumeId: "b", TargetPath: "/no/such/directory/mount"})
	require.NoError(t, err)
	require.NoDirExists(t, w.home.Directory("b"))
}

func TestMountinfo(t *testing.T) {
	const text = `22 28 0:21 / /proc rw,relatime shared:7 - proc proc rw
40 28 0:35 / /var/lib/kubelet/pods/a\040b/mount rw,nosuid shared:1 master:2 - tmpfs tmpfs rw,size=8k
41 40 0:3 /home/mount/v /var/lib/kubelet/pods/a\040b/mount/nodeagent ro,relatime - ext4 /dev/vda rw
42 28 0:36 / /mnt\134x rw - xfs /dev/vdb rw
43 28 0:36 / /mnt\134x rw - tmpfs tmpfs rw
`
	for path, want := range map[string][]string{
		"/proc": {"proc"}, "/var/lib/kubelet/pods/a b/mount": {"tmpfs"}, "/var/lib/kubelet/pods/a b/mount/nodeagent": {"ext4"},
		`/mnt\x`: {"xfs", "tmpfs"}, "/": nil, "/var": nil,
	} {
		got, err := mountedAt(text, path)
		require.NoError(t, err)
		require.Equal(t, want, got, path)
	}
	_, err := mountedAt("22 28 0:21 / /proc rw,relatime\n", "/proc")
	require.ErrorContains(t, err, "cannot be read")
}

func TestConfig(t *testing.T) {
	path := filepath.Join(t.TempDir(), "nodeagent.json")
	c, err := ReadConfig(path)
	require.NoError(t, err, "there need be none")
	home, err := c.Layout()
	require.NoError(t, err)
	require.Equal(t, "/var/run/nodeagent/mount", home.Mounts)
	require.Equal(t, "/var/run/nodeagent/creds", home.Records)
	for _, body := range slices.Sorted(maps.Keys(configs)) {
		want := configs[body]
		require.NoError(t, os.WriteFile(path, []byte(body), 0o600))
		c, err := ReadConfig(path)
		if err == nil {
			home, err = c.Layout()
		}
		if strings.HasPrefix(want, "/") {
			require.NoError(t, err, body)
			require.Equal(t, want, home.Mounts+" "+home.Records, body)
			continue
		}
		require.ErrorContains(t, err, want, body)
	}
}

var configs = map[string]string{
	`{}`: "/var/run/nodeagent/mount /var/run/nodeagent/creds",
	`{"nodeagent_management_home":"/srv/agent","log_level":"INFO","node_id":"n","endpoint":"/x.sock"}`: "/srv/agent/mount /srv/agent/creds",
	`{"nodeagent_workload_home":"/pods","nodeagent_credentials_home":"who"}`:                           "/var/run/nodeagent/pods /var/run/nodeagent/who",
	`{"nodeagent_workload_home":"../../../etc","nodeagent_management_home":"/srv"}`:                    "/srv/etc /srv/creds",
	`{"nodeagent_management_home":"srv"}`:                                                              "not an absolute path",
	`{"nodeagent_workload_home":"/creds/mount"}`:                                                       "are not apart",
	`{"home":"/srv"}`: `unknown field "home"`,
	`{`:               "unexpected EOF",
}
