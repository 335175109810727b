//go:build lab

package k8s

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/calicoctl/verb"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/datastore/embedded"
	"github.com/muslin-net/muslin/datastore/kubernetes"
	"github.com/muslin-net/muslin/integration/guide"
)

// cli runs calicoctl with the settings in a file.
type cli struct {
	*testing.T
	config string
}

// settings writes the file that tells calicoctl where the datastore is.
func settings(t *testing.T, spec string) cli {
	t.Helper()
	file := filepath.Join(t.TempDir(), "calicoctl.cfg")
	require.NoError(t, os.WriteFile(file, []byte("apiVersion: projectcalico.org/v3\nkind: CalicoAPIConfig\nmetadata: {}\nspec: "+spec+"\n"), 0o600))
	return cli{t, file}
}

// onKubernetes is calicoctl for a cluster's administrator.
func onKubernetes(t *testing.T, s *Server) cli {
	t.Helper()
	file := filepath.Join(t.TempDir(), "kubeconfig")
	require.NoError(t, os.WriteFile(file, Kubeconfig(Admin, s.Port()), 0o600))
	return settings(t, fmt.Sprintf("{datastoreType: kubernetes, kubeconfig: %q}", file))
}

func (c cli) run(stdin string, args ...string) (stdout string, err error) {
	c.Helper()
	var out, trouble bytes.Buffer
	if code := verb.Run(c.Context(), "v1.2.3", append([]string{"-c", c.config, "--allow-version-mismatch"}, args...), strings.NewReader(stdin), &out, &trouble); code != 0 {
		return out.String(), fmt.Errorf("calicoctl %s: %s", strings.Join(args, " "), trouble.String())
	}
	return out.String(), nil
}

func (c cli) must(args ...string) string {
	c.Helper()
	out, err := c.run("", args...)
	require.NoError(c, err)
	return out
}

// join has nodes be in the cluster.
func (s *Server) join(ctx context.Context, t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		require.NoError(t, s.Create(ctx, "/api/v1/nodes", object{"metadata": object{"name": name, "labels": object{"kubernetes.io/hostname": name}}}))
	}
}

// TestCalicoctl: every verb on every kind that users write, and the words where Kubernetes does not support one.
func TestCalicoctl(t *testing.T) {
	ctx, s := defined(t)
	s.join(ctx, t, "master", "worker-1", "worker-3")
	c := onKubernetes(t, s)
	client, err := kubernetes.New(kubernetes.Config{REST: s.Config(Admin)})
	require.NoError(t, err)
	require.NoError(t, errors.Join(datastore.Init(ctx, client), client.Close()), "as typha does at its first start")
	text, err := os.ReadFile("../../calicoctl/verb/testdata/resources.yaml")
	require.NoError(t, err)
	var written, profile string
	for doc := range strings.SplitSeq(string(text), "\n---\n") {
		if strings.Contains(doc, "kind: Profile") {
			profile = doc
		} else {
			written += "---\n" + doc + "\n"
		}
	}
	_, err = c.run(profile, "apply", "-f", "-")
	require.ErrorContains(t, err, "failed to apply 'Profile' resource: [")

	for range 2 {
		out, err := c.run(written, "apply", "-f", "-")
		require.NoError(t, err)
		require.Equal(t, "Successfully applied 20 resource(s)\n", out)
	}
	out, err := c.run(written, "replace", "-f", "-")
	require.NoError(t, err)
	require.Equal(t, "Successfully replaced 20 resource(s)\n", out)

	for _, kind := range api.Kinds() {
		if kind.Internal {
			continue
		}
		for _, output := range []string{"ps", "wide", "yaml", "json"} {
			printed := c.must("get", kind.Name, "-A", "-o", output)
			require.NotEmpty(t, printed)
			if output == "yaml" && kind.Name != "ClusterInformation" {
				_, err := c.run(printed, "validate", "-f", "-", "--skip-empty")
				require.NoError(t, err, "what get prints can be given back")
			}
		}
	}
	require.Contains(t, c.must("get", "profile"), "kns.shop")
	require.Contains(t, c.must("get", "node", "-o", "wide"), "10.30.0.206/24")

	install := manual{t, "install.md", map[string]cli{"": c}, ""}
	for _, command := range append(install.commands("look"), install.commands("mode")...) {
		install.follow(command)
	}
	require.Contains(t, c.must("get", "ippool", "default-ipv4-ippool", "-o", "yaml"), "vxlanMode: Always")

	c.must("label", "ippool", "vxlan-pool", "colour=blue")
	c.must("patch", "ippool", "vxlan-pool", "-p", `{"spec": {"vxlanMode": "Always"}}`)
	require.Contains(t, c.must("get", "ippool", "vxlan-pool", "-o", "yaml"), "vxlanMode: Always")
	c.must("patch", "node", "worker-1", "-p", `{"spec": {"bgp": {"asNumber": 64999}}}`)
	c.must("label", "node", "worker-1", "calicos=own")
	require.Contains(t, c.must("get", "node", "worker-1", "-o", "yaml"), "calicos: own")
	require.Contains(t, c.must("get", "node", "-o", "wide"), "64999")

	for _, refused := range [][]string{
		{"delete", "node", "worker-3"},
		{"delete", "profile", "kns.shop"},
		{"label", "profile", "kns.shop", "a=b"},
		{"patch", "profile", "kns.shop", "-p", `{"spec": {"labelsToApply": {"a": "b"}}}`},
	} {
		_, err := c.run("", refused...)
		require.ErrorContains(t, err, "failed to "+refused[0], refused)
		t.Log(err)
	}
	_, err = c.run("{apiVersion: projectcalico.org/v3, kind: Node, metadata: {name: new}, spec: {bgp: {ipv4Address: 10.0.0.1/24}}}", "create", "-f", "-")
	require.ErrorContains(t, err, "failed to create 'Node' resource")
	t.Log(err)

	c.must("delete", "gnp", "security.deny-bad") // before its tier
	for doc := range strings.SplitSeq(written, "---\n") {
		if strings.TrimSpace(doc) == "" || strings.Contains(doc, "kind: Node") {
			continue
		}
		_, err := c.run(doc, "delete", "-f", "-", "-s")
		require.NoError(t, err, doc)
	}
	require.NotContains(t, c.must("get", "ippool"), "vxlan-pool")
}

// calicos is an etcd with what real Calico wrote.
func calicos(ctx context.Context, t *testing.T) cli {
	t.Helper()
	e, err := embedded.Start(ctx, embedded.Config{Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, e.Close()) })
	text, err := os.ReadFile("../../calicoctl/verb/testdata/etcd.json")
	require.NoError(t, err)
	var keys map[string]json.RawMessage
	require.NoError(t, json.Unmarshal(text, &keys))
	raw, err := clientv3.New(clientv3.Config{Endpoints: []string{e.Endpoint()}, DialTimeout: 5 * time.Second})
	require.NoError(t, err)
	defer raw.Close()
	for key, value := range keys {
		_, err := raw.Put(ctx, key, string(value))
		require.NoError(t, err)
	}
	return settings(t, fmt.Sprintf("{datastoreType: etcdv3, etcdEndpoints: %q}", e.Endpoint()))
}

// tables are what users see of all that they wrote, and of addresses.
func (c cli) tables() (all []string) {
	c.Helper()
	for _, kind := range []string{
		"ippool", "bgppeer", "bgpfilter", "bgpconfig", "felixconfig", "gnp", "hep", "tier", "gnetsets", "ipreservation", "ipamconfig", "clusterinfo", "node",
	} {
		all = append(all, c.must("get", kind, "-o", "wide"))
	}
	for _, kind := range []string{"np", "netsets"} {
		all = append(all, c.must("get", kind, "-A", "-o", "wide"))
	}
	return append(all, c.must("ipam", "show", "--show-blocks"), c.must("ipam", "show", "--ip=192.168.226.65"))
}

// TestMigration: what real Calico wrote to etcd moves to Kubernetes by the commands of docs/take-over.md, and looks the same there.
func TestMigration(t *testing.T) {
	ctx, s := defined(t)
	from, to := calicos(ctx, t), onKubernetes(t, s)
	_, err := from.run("", "datastore", "migrate", "import", "-f", "x")
	require.ErrorContains(t, err, "DATASTORE_TYPE=kubernetes")
	_, err = from.run("", "datastore", "migrate", "export")
	require.ErrorContains(t, err, "not locked")

	page := manual{t, "take-over.md", map[string]cli{"etcd.cfg": from, "kubernetes.cfg": to}, filepath.Join(t.TempDir(), "etcd-data")}
	commands := page.commands("migration")
	at := slices.IndexFunc(commands, func(c string) bool { return strings.Contains(c, " import ") })
	for _, c := range commands[:at] {
		page.follow(c)
	}
	_, err = to.run("", "datastore", "migrate", "import", "-f", page.file)
	require.ErrorContains(t, err, "master, worker-1, worker-3")
	s.join(ctx, t, "master", "worker-1", "worker-3")
	page.follow(commands[at])
	require.Equal(t, from.tables(), to.tables())
	require.Contains(t, to.must("datastore", "migrate", "import", "-f", page.file), "already")
	_, err = to.run("", "datastore", "migrate", "export")
	require.ErrorContains(t, err, "DATASTORE_TYPE=etcdv3")
	for _, c := range commands[at+1:] {
		page.follow(c)
	}
	require.Contains(t, to.must("get", "clusterinfo"), "true")
	for _, c := range page.commands("policy names") {
		page.follow(c)
	}
}

// manual is a page of docs, whose commands are tried.
type manual struct {
	*testing.T
	page string
	at   map[string]cli // calicoctl, by the name of its file; "" is the one that needs none
	file string         // of the export
}

// commands are those of the parts of the guide that bear a name.
func (g manual) commands(part string) (commands []string) {
	g.Helper()
	blocks, err := guide.Blocks(filepath.Join("../../docs", g.page), "tried: "+part)
	require.NoError(g, err)
	for _, line := range guide.Commands(blocks...) {
		if command, ok := strings.CutPrefix(line, "calicoctl "); ok {
			commands = append(commands, command)
		}
	}
	require.NotEmpty(g, commands, part)
	return commands
}

// word finds the words of a command; '…' keeps blanks.
var word = regexp.MustCompile(`'[^']*'|\S+`)

// follow runs a command of the guide, which has to succeed.
func (g manual) follow(command string) {
	g.Helper()
	command, redirected := strings.CutSuffix(command, " > etcd-data")
	var words []string
	for _, w := range word.FindAllString(command, -1) {
		words = append(words, strings.Trim(w, "'"))
	}
	name := ""
	if words[0] == "-c" {
		name, words = words[1], words[2:]
	}
	c, ok := g.at[name]
	require.True(g, ok, command)
	for i, word := range words {
		if word == "etcd-data" {
			words[i] = g.file
		}
	}
	out := c.must(words...)
	if redirected {
		require.NoError(g, os.WriteFile(g.file, []byte(out), 0o600))
		return
	}
	g.Logf("calicoctl %s\n%s", command, out)
}

// get reads an object as the server keeps it.
func (s *Server) get(ctx context.Context, path string) (o object, err error) {
	client, err := rest.HTTPClientFor(s.Config(Admin))
	if err != nil {
		return nil, err
	}
	defer client.CloseIdleConnections()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL()+path, nil)
	if err != nil {
		return nil, err
	}
	answer, err := client.Do(r)
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(answer.Body)
	if err = errors.Join(err, answer.Body.Close()); err != nil {
		return nil, err
	}
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	return o, decoder.Decode(&o)
}

// TestTakeOver: a cluster that holds the objects of Calico's own group is read and changed by the same commands; what is not
// changed stays as it is, to the byte, and what is changed and changed back is as it was.
func TestTakeOver(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	s, err := Start(ctx, t.TempDir(), func(what string) { t.Log(what) })
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Stop()) })
	require.NoError(t, s.Create(ctx, "/api/v1/namespaces", object{"metadata": object{"name": "shop"}}))
	s.join(ctx, t, "worker-1")
	definitions, err := os.ReadFile("../../deploy/classic/crds.yaml")
	require.NoError(t, err)
	for doc := range strings.SplitSeq(string(definitions), "\n---\n") {
		var definition object
		require.NoError(t, yaml.Unmarshal([]byte(doc), &definition))
		if len(definition) > 0 {
			require.NoError(t, s.Create(ctx, definitionsPath, definition))
		}
	}
	text, err := os.ReadFile("testdata/classic.yaml")
	require.NoError(t, err)
	before := map[string]object{}
	for doc := range strings.SplitSeq(string(text), "\n---\n") {
		var o object
		require.NoError(t, yaml.Unmarshal([]byte(doc), &o))
		meta := o["metadata"].(map[string]any)
		path := "/apis/crd.projectcalico.org/v1"
		if ns, ok := meta["namespace"].(string); ok {
			path += "/namespaces/" + ns
		}
		kind := o["kind"].(string)
		at := slices.IndexFunc(api.Kinds(), func(k api.Kind) bool { return k.Name == kind })
		path += "/ipamconfigs"
		if at >= 0 {
			path = strings.TrimSuffix(path, "/ipamconfigs") + "/" + api.Kinds()[at].Plural
		}
		(&rig{T: t, ctx: ctx, server: s}).serve(path, o)
		path += "/" + meta["name"].(string)
		before[path], err = s.get(ctx, path)
		require.NoError(t, err)
	}
	unchanged := func() {
		t.Helper()
		for path, was := range before {
			now, err := s.get(ctx, path)
			require.NoError(t, err)
			require.Equal(t, was["spec"], now["spec"], path)
			require.Equal(t, was["metadata"], now["metadata"], path)
		}
	}

	c := onKubernetes(t, s)
	page := manual{t, "take-over.md", map[string]cli{"calico.cfg": c}, ""}
	for _, command := range page.commands("look") {
		page.follow(command)
	}
	require.Contains(t, c.must("get", "ippool", "-o", "wide"), "192.168.0.0/16   true   Always     Never")
	require.Contains(t, c.must("get", "ippool", "default-ipv4-ippool", "-o", "yaml"), "team: net")
	require.Contains(t, c.must("get", "gnp"), "allow-dns")
	require.NotContains(t, c.must("get", "gnp"), "default.allow-dns")
	require.Contains(t, c.must("get", "np", "-n", "shop"), "allow-web")
	require.Contains(t, c.must("get", "clusterinfo"), "5e1f8f6a2c8d4d0ea1f0c3b2a1908172")
	require.Contains(t, c.must("get", "bgpconfig"), "64600")
	require.Contains(t, c.must("ipam", "show", "--show-blocks"), "192.168.226.64/30")
	require.Contains(t, c.must("ipam", "show", "--ip=192.168.226.66"), "web-0")
	require.Contains(t, c.must("ipam", "show", "--show-configuration"), "StrictAffinity")
	for _, kind := range api.Kinds() {
		if !kind.Internal {
			c.must("get", kind.Name, "-A", "-o", "yaml")
		}
	}
	unchanged()

	const pool = "/apis/crd.projectcalico.org/v1/ippools/default-ipv4-ippool"
	c.must("patch", "ippool", "default-ipv4-ippool", "-p", `{"spec": {"ipipMode": "CrossSubnet"}}`)
	c.must("label", "ippool", "default-ipv4-ippool", "colour=blue")
	changed, err := s.get(ctx, pool)
	require.NoError(t, err)
	require.Equal(t, "CrossSubnet", changed["spec"].(map[string]any)["ipipMode"])
	require.Contains(t, changed["metadata"].(map[string]any)["annotations"].(map[string]any)["projectcalico.org/metadata"], `"colour":"blue"`, "Calico reads labels there")
	c.must("patch", "ippool", "default-ipv4-ippool", "-p", `{"spec": {"ipipMode": "Always"}}`)
	c.must("label", "ippool", "default-ipv4-ippool", "--remove", "colour")
	back, err := s.get(ctx, pool)
	require.NoError(t, err)
	require.Equal(t, before[pool]["spec"], back["spec"])
	require.Equal(t, before[pool]["metadata"].(map[string]any)["name"], back["metadata"].(map[string]any)["name"])
	delete(before, pool)
	unchanged()
}
