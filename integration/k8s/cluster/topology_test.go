package cluster

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"

	"github.com/muslin-net/muslin/deploy/image"
	"github.com/muslin-net/muslin/integration/k8s"
)

// TestTopology: clusters of any size can be built, with workers in two subnets in turn.
func TestTopology(t *testing.T) {
	paths := map[k8s.Program]string{}
	for _, p := range []k8s.Program{k8s.APIServer, k8s.ControllerManager, k8s.Scheduler, k8s.Kubelet, k8s.Proxy} {
		paths[p] = "/programs/" + string(p)
	}
	for workers := 1; workers < 20; workers++ {
		topo := topology(Options{Workers: workers}, paths)
		require.NoError(t, topo.Validate())
		assert.Len(t, topo.Nodes, workers+1)
	}
	topo := topology(Options{Workers: 3}, paths)
	assert.Equal(t, "10.40.0.11", topo.Nodes[1].Addresses[0].String())
	assert.Equal(t, "10.40.1.12", topo.Nodes[2].Addresses[0].String())
	assert.Equal(t, "10.40.0.13", topo.Nodes[3].Addresses[0].String())
	kubelet := topo.Nodes[2].Machine.Programs[1]
	assert.Equal(t, "/programs/kubelet", kubelet.Args[0])
	assert.Subset(t, kubelet.Args, []string{"worker-2", "10.40.1.12", "topology.kubernetes.io/zone=zone-2"})
}

// TestFiles: every path of a configuration or certificate that a program is told is one that is written, and all of it is YAML.
func TestFiles(t *testing.T) {
	dir := t.TempDir()
	topo := topology(Options{Workers: 2}, map[k8s.Program]string{})
	for _, n := range topo.Nodes {
		require.NoError(t, os.MkdirAll(place(dir, n.Name, confDir), 0o755))
	}
	require.NoError(t, writeFiles("id", dir, 2))
	written := func(machine, path string) string {
		return place(dir, machine, confDir) + strings.TrimPrefix(path, confDir)
	}
	for _, n := range topo.Nodes {
		for _, p := range n.Machine.Programs {
			for _, arg := range p.Args {
				if strings.HasPrefix(arg, confDir) {
					assert.FileExists(t, written(n.Name, arg), "%s on %s", p.Name, n.Name)
				}
			}
		}
	}
	for _, file := range []string{"kubelet.yaml", "proxy.yaml", "kubelet/kubeconfig"} {
		text, err := os.ReadFile(written(Worker(1), confDir+"/"+file))
		require.NoError(t, err)
		var content map[string]any
		require.NoError(t, yaml.UnmarshalStrict(text, &content), file)
		if file == "kubelet.yaml" {
			assert.Equal(t, "/muslin-k8s/id/worker-1", content["cgroupRoot"])
			assert.Equal(t, "0%", content["evictionHard"].(map[string]any)["nodefs.available"])
		}
	}
}

// TestWorkloadImage: the archive has the name by which pods ask for the image.
func TestWorkloadImage(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "program")
	require.NoError(t, os.WriteFile(program, []byte("a program"), 0o755))
	archive, err := archiveWorkload(program, dir)
	require.NoError(t, err)
	text, err := os.ReadFile(archive)
	require.NoError(t, err)
	var index []byte
	var names []string
	for r := tar.NewReader(bytes.NewReader(text)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		names = append(names, h.Name)
		if h.Name == "index.json" {
			index, err = io.ReadAll(r)
			require.NoError(t, err)
		}
	}
	assert.True(t, slices.Contains(names, "oci-layout"))
	assert.Contains(t, string(index), image.Canonical(WorkloadImage))
	assert.Contains(t, containerdConfig, image.Canonical(WorkloadImage))
}
