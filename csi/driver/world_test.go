package driver

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/csi/client"
)

// table is mounts without a kernel. It refuses what the kernel refuses.
type table struct {
	mounted map[string][]entry
	fail    map[string]error // by the name of the method
}

type entry struct {
	kind     string
	from     fs.FileInfo
	readOnly bool
}

func newTable() *table { return &table{mounted: map[string][]entry{}, fail: map[string]error{}} }

func (t *table) at(path string) (types []string, _ error) {
	for _, e := range t.mounted[path] {
		types = append(types, e.kind)
	}
	return types, t.fail["at"]
}

func (t *table) push(name, path string, e entry) error {
	if err := t.fail[name]; err != nil {
		return err
	}
	if found, err := os.Stat(path); err != nil || !found.IsDir() {
		return errors.Join(unix.ENOTDIR, err)
	}
	t.mounted[path] = append(t.mounted[path], e)
	return nil
}

func (t *table) tmpfs(path string) error { return t.push("tmpfs", path, entry{kind: tmpfsType}) }

func (t *table) bind(from, to string) error {
	found, err := os.Stat(from)
	if err != nil {
		return err
	}
	return t.push("bind", to, entry{kind: "ext4", from: found})
}

func (t *table) shows(from, to string) (bool, error) {
	found, err := os.Stat(from)
	if err != nil {
		return false, err
	}
	all := t.mounted[to]
	return os.SameFile(found, all[len(all)-1].from), nil
}

func (t *table) readOnly(path string) error {
	if err := t.fail["readOnly"]; err != nil {
		return err
	}
	all := t.mounted[path]
	if len(all) == 0 {
		return unix.EINVAL
	}
	all[len(all)-1].readOnly = true
	return nil
}

func (t *table) unmount(path string) error {
	if err := t.fail["unmount"]; err != nil {
		return err
	}
	all := t.mounted[path]
	if len(all) == 0 {
		return unix.EINVAL
	}
	for other := range t.mounted {
		if strings.HasPrefix(other, path+"/") {
			return unix.EBUSY
		}
	}
	if all[len(all)-1].kind == tmpfsType { // what was in it is gone
		inside, err := os.ReadDir(path)
		for _, e := range inside {
			err = errors.Join(err, os.RemoveAll(filepath.Join(path, e.Name())))
		}
		if err != nil {
			return err
		}
	}
	if t.mounted[path] = all[:len(all)-1]; len(all) == 1 {
		delete(t.mounted, path)
	}
	return nil
}

// world is a node with the driver and a place where kubelet keeps pods' volumes.
type world struct {
	t       *testing.T
	driver  *Driver
	mounts  mounts
	home    client.Home
	kubelet string
}

func newWorld(t *testing.T, m mounts) *world {
	t.Helper()
	root, err := filepath.EvalSymlinks(t.TempDir())
	require.NoError(t, err)
	w := &world{t: t, mounts: m, home: client.HomeAt(filepath.Join(root, "home")), kubelet: filepath.Join(root, "kubelet")}
	require.NoError(t, os.Mkdir(w.kubelet, 0o755))
	w.driver = New("worker-1", w.home, slog.New(slog.DiscardHandler))
	w.driver.volumes.mounts = m
	return w
}

// target is where a volume of a pod is mounted.
func (w *world) target(id string) string {
	dir := filepath.Join(w.kubelet, id)
	require.NoError(w.t, os.MkdirAll(dir, 0o755))
	return filepath.Join(dir, "mount")
}

func (w *world) volume(id string) volume {
	return volume{id: id, target: w.target(id), pod: client.Pod{UID: "uid-" + id, Name: "pod-" + id, Namespace: "shop", ServiceAccount: "seller"}}
}

// request is how kubelet asks for a volume.
func (w *world) request(id string) *csi.NodePublishVolumeRequest {
	it := w.volume(id)
	return &csi.NodePublishVolumeRequest{
		VolumeId: id, TargetPath: it.target,
		VolumeCapability: &csi.VolumeCapability{
			AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{}},
			AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
		},
		VolumeContext: map[string]string{
			attributePod: it.pod.Name, attributeNS: it.pod.Namespace, attributeUID: it.pod.UID, attributeAccount: it.pod.ServiceAccount,
			attributeLifetime: "true",
		},
	}
}

func (w *world) publish(req *csi.NodePublishVolumeRequest) error {
	_, err := w.driver.NodePublishVolume(w.t.Context(), req)
	return err
}

func (w *world) unpublish(id string) error {
	_, err := w.driver.NodeUnpublishVolume(w.t.Context(), &csi.NodeUnpublishVolumeRequest{VolumeId: id, TargetPath: w.target(id)})
	return err
}

// whole tells what is not as it should be of a volume that is there.
func (w *world) whole(it volume) error {
	owner, err := w.home.Load(it.id)
	if err == nil && owner != it.pod {
		err = fmt.Errorf("recorded for %v", owner)
	}
	for _, path := range []string{it.target, filepath.Join(it.target, inside)} {
		types, e := w.mounts.at(path)
		if len(types) != 1 {
			e = errors.Join(e, fmt.Errorf("%s is mounted %d times: %v", path, len(types), types))
		}
		err = errors.Join(err, e)
	}
	if err != nil {
		return err
	}
	same, err := w.mounts.shows(w.home.Directory(it.id), filepath.Join(it.target, inside))
	if !same {
		err = errors.Join(err, errors.New("the pod sees another directory"))
	}
	return err
}

// nothing tells what there is of a volume that should not be there.
func (w *world) nothing(it volume) (err error) {
	for _, path := range []string{it.target, filepath.Join(it.target, inside)} {
		types, e := w.mounts.at(path)
		if err = errors.Join(err, e); len(types) > 0 {
			err = errors.Join(err, fmt.Errorf("%s is mounted: %v", path, types))
		}
	}
	for _, path := range []string{it.target, w.home.Directory(it.id), filepath.Join(w.home.Records, it.id+".json"), filepath.Join(w.home.Records, "."+it.id)} {
		if _, e := os.Lstat(path); !errors.Is(e, fs.ErrNotExist) {
			err = errors.Join(err, fmt.Errorf("%s is there", path), e)
		}
	}
	return err
}

// killed goes through every moment at which the process may be killed while it makes or removes a volume: whatever is asked
// for next, of a process that knows nothing of the one before, ends as if nothing had happened.
func killed(t *testing.T, m mounts) {
	w := newWorld(t, m)
	for _, before := range []struct {
		name  string
		steps func(volume) []step
		whole bool // the volume is there when the steps begin
	}{
		{"making", w.driver.volumes.making, false},
		{"removing", func(it volume) []step { return w.driver.volumes.removing(it.id, it.target) }, true},
	} {
		for n := range len(before.steps(w.volume("x"))) + 1 {
			for _, next := range []string{"publish", "unpublish", "publish twice"} {
				it := w.volume(fmt.Sprintf("%s-%d-%s", before.name, n, strings.ReplaceAll(next, " ", "-")))
				name := fmt.Sprintf("killed after %d steps of %s, then %s", n, before.name, next)
				if before.whole {
					require.NoError(t, w.publish(w.request(it.id)), name)
				}
				require.NoError(t, run(before.steps(it)[:n]), name)
				if next != "unpublish" {
					require.NoError(t, w.publish(w.request(it.id)), name)
					require.NoError(t, w.whole(it), name)
				}
				if next == "publish twice" {
					require.NoError(t, w.publish(w.request(it.id)), name)
					require.NoError(t, w.whole(it), name)
				}
				require.NoError(t, w.unpublish(it.id), name)
				require.NoError(t, w.nothing(it), name)
				require.NoError(t, w.unpublish(it.id), name+": once more")
			}
		}
	}
}
