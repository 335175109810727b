//go:build lab

package k8s

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"

	"github.com/muslin-net/muslin/api"
)

// patience is how long a test may take in all.
const patience = 25 * time.Minute // the first time it is built

// defined starts an API server that serves our kinds, with the namespaces that the examples of package api are in.
func defined(t *testing.T) (context.Context, *Server) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	s, err := Start(ctx, t.TempDir(), func(what string) { t.Log(what) })
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Stop()) })
	files, err := filepath.Glob("../../deploy/chart/crds/projectcalico.org_*.yaml")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		var definition object
		require.NoError(t, yaml.Unmarshal(text, &definition))
		require.NoError(t, s.Create(ctx, definitionsPath, definition), file)
	}
	for _, name := range []string{"shop", "prod"} {
		require.NoError(t, s.Create(ctx, "/api/v1/namespaces", object{"metadata": object{"name": name}}))
	}
	for _, kind := range api.Kinds() {
		if hasDefinition(kind) {
			served(ctx, t, s, kind)
		}
	}
	return ctx, s
}

// hasDefinition tells whether a kind is one of its own in Kubernetes.
func hasDefinition(kind api.Kind) bool {
	_, err := os.Stat("../../deploy/chart/crds/projectcalico.org_" + kind.Plural + ".yaml")
	return err == nil
}

// served waits until objects of a kind can be created.
func served(ctx context.Context, t *testing.T, s *Server, kind api.Kind) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := s.Create(ctx, resourcePath(kind, "shop")+"?dryRun=All", object{"apiVersion": api.GroupVersion, "kind": kind.Name, "metadata": object{"name": "a"}})
		if err == nil || !strings.Contains(err.Error(), ": 404 Not Found: ") {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal(kind.Name, err)
		}
	}
}

func resourcePath(kind api.Kind, namespace string) string {
	path := "/apis/" + api.GroupVersion
	if kind.Namespaced && namespace != "" {
		path += "/namespaces/" + namespace
	}
	return path + "/" + kind.Plural
}

// try has the server judge a document as kubectl has it judged, without keeping it.
func (s *Server) try(ctx context.Context, t *testing.T, doc string) error {
	t.Helper()
	var o object
	require.NoError(t, yaml.Unmarshal([]byte(doc), &o), doc)
	kind, ok := api.LookupKind(o["kind"].(string))
	require.True(t, ok, doc)
	meta, _ := o["metadata"].(map[string]any)
	namespace, _ := meta["namespace"].(string)
	if slices.Contains([]string{"IPAMBlock", "BlockAffinity", "IPAMHandle"}, kind.Name) { // whose names in Kubernetes are others
		meta["name"] = "a"
	}
	return s.Create(ctx, resourcePath(kind, namespace)+"?dryRun=All&fieldValidation=Strict", o)
}

// examples are the documents of the test files of package api.
func examples(t *testing.T, pattern string) (docs []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("../../api/testdata", pattern))
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		docs = append(docs, strings.Split(string(text), "\n---\n")...)
	}
	return docs
}

// The API server takes every good example, as users write them and as we store them, and refuses every bad one that our own
// validation refuses, with the words that the files of bad ones say. Where it takes one, the file says why.
func TestDefinitions(t *testing.T) {
	ctx, s := defined(t)
	for _, doc := range examples(t, "good/*.yaml") {
		objects, err := api.Decode([]byte(doc))
		require.NoError(t, err)
		o := objects[0]
		if !hasDefinition(api.KindOf(o)) {
			continue
		}
		assert.NoError(t, s.try(ctx, t, doc), doc)
		o.Default()
		text, err := api.Encode(o)
		require.NoError(t, err)
		assert.NoError(t, s.try(ctx, t, string(text)))
	}
	refused, taken := 0, map[string]int{}
	for _, doc := range examples(t, "bad/*.yaml") {
		said := comments(doc, "# schema: ")
		why, accepts := strings.CutPrefix(said[0], "accepts: ")
		switch {
		case said[0] == "has none":
		case accepts && why != "the server":
			assert.NoError(t, s.try(ctx, t, doc), doc)
			taken[why]++
		default:
			err := s.try(ctx, t, doc)
			if !assert.Error(t, err, doc) {
				continue
			}
			refused++
			if accepts {
				continue
			}
			for _, line := range said {
				field, message, _ := strings.Cut(line, ": ")
				if len(causes(t, err)) == 0 { // it could not even be read as an object of the kind
					assert.ErrorContains(t, err, field[strings.LastIndexByte(field, '.')+1:], doc)
					continue
				}
				assert.Contains(t, causes(t, err), field, doc)
				assert.Contains(t, unquoted(err), message, doc)
			}
		}
	}
	t.Logf("refused %d bad documents; taken, by the reason: %v", refused, taken)
}

func comments(doc, prefix string) (lines []string) {
	for line := range strings.SplitSeq(doc, "\n") {
		if text, ok := strings.CutPrefix(line, prefix); ok {
			lines = append(lines, text)
		}
	}
	return lines
}

// status is what the server answered, as it is in an error of Server.do.
func status(err error) (s struct {
	Message string
	Details struct {
		Causes []struct{ Field, Message string }
	}
},
) {
	text := err.Error()
	if at := strings.IndexByte(text, '{'); at >= 0 {
		_ = json.NewDecoder(bytes.NewBufferString(text[at:])).Decode(&s)
	}
	return s
}

func causes(t *testing.T, err error) (fields []string) {
	t.Helper()
	for _, c := range status(err).Details.Causes {
		fields = append(fields, c.Field)
	}
	return fields
}

func unquoted(err error) string {
	var all strings.Builder
	for _, c := range status(err).Details.Causes {
		all.WriteString(strings.ReplaceAll(c.Message, "\n", " ") + "\n")
	}
	return all.String()
}

// What may not change is refused too, by the server alone, and a status is not written with a spec.
func TestUpdates(t *testing.T) {
	ctx, s := defined(t)
	pools := resourcePath(api.MustKind("IPPool"), "")
	pool := object{"apiVersion": api.GroupVersion, "kind": "IPPool", "metadata": object{"name": "a"}, "spec": object{"cidr": "10.0.0.0/16"}, "status": object{"conditions": []any{}}}
	require.NoError(t, s.Create(ctx, pools, pool))
	for change, want := range map[string]string{
		`{"spec": {"cidr": "10.1.0.0/16"}}`:                                     "cidr cannot be changed",
		`{"spec": {"blockSize": 28}}`:                                           "blockSize cannot be changed",
		`{"spec": {"vxlanMode": "Always", "ipipMode": "Always"}}`:               "a pool uses ipipMode or vxlanMode, not both",
		`{"spec": {"allowedUses": ["LoadBalancer"], "nodeSelector": "has(a)"}}`: "a LoadBalancer pool needs nodeSelector all()",
	} {
		err := s.Patch(ctx, pools+"/a", json.RawMessage(change))
		require.ErrorContains(t, err, want)
	}
	require.NoError(t, s.Patch(ctx, pools+"/a", json.RawMessage(`{"spec": {"vxlanMode": "CrossSubnet", "blockSize": 26}}`)))
	require.NoError(t, s.Create(ctx, pools, object{
		"apiVersion": api.GroupVersion, "kind": "IPPool", "metadata": object{"name": "balancer"},
		"spec": object{"cidr": "10.2.0.0/16", "allowedUses": []string{"LoadBalancer"}},
	}))
	err := s.Patch(ctx, pools+"/balancer", json.RawMessage(`{"spec": {"allowedUses": ["Workload"]}}`))
	require.ErrorContains(t, err, "a LoadBalancer pool cannot be turned into another use")
}
