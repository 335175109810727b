package api_test

import (
	"bytes"
	"cmp"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"

	"github.com/muslin-net/muslin/api"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// documents cuts a test file at its separators; each document keeps its comments.
func documents(t testing.TB, file string) []string {
	t.Helper()
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	return strings.Split(string(text), "\n---\n")
}

// TestGood decodes every good example as users write them, defaults and validates it, and compares what would be stored
// with the golden file. The CRD of the kind has to accept it as well, before and after.
func TestGood(t *testing.T) {
	for _, kind := range api.Kinds() {
		t.Run(kind.Name, func(t *testing.T) {
			t.Parallel()
			base := filepath.Join("testdata", "good", strings.ToLower(kind.Name))
			var golden bytes.Buffer
			for _, doc := range documents(t, base+".yaml") {
				objects, err := api.Decode([]byte(doc))
				require.NoError(t, err)
				require.Len(t, objects, 1)
				o := objects[0]
				require.Equal(t, kind.Name, api.KindOf(o).Name)
				if !slices.Contains(withoutCRD, kind.Name) {
					text, err := yaml.YAMLToJSON([]byte(doc))
					require.NoError(t, err)
					require.Empty(t, readCRD(t, kind).judge(numbers(t, text), nil), doc)
				}
				stored := requireGood(t, o)
				require.NoError(t, json.Indent(&golden, stored, "", " "))
				golden.WriteByte('\n')
			}
			compare(t, base+".json", golden.Bytes())
		})
	}
}

// requireGood checks what holds for every good object, and returns it as it would be stored.
func requireGood(t *testing.T, o api.Object) []byte {
	t.Helper()
	kind := api.KindOf(o)
	o.Default()
	require.NoError(t, o.Validate())
	once, err := api.Encode(o)
	require.NoError(t, err)
	o.Default()
	twice, err := api.Encode(o)
	require.NoError(t, err)
	require.Equal(t, string(once), string(twice), "Default is not idempotent")

	back, err := api.DecodeStored(kind, once)
	require.NoError(t, err)
	require.True(t, back.Residue().IsEmpty(), "the type does not know all that it writes")
	require.NoError(t, back.Validate())
	again, err := api.Encode(back)
	require.NoError(t, err)
	require.Equal(t, string(once), string(again), "Encode(DecodeStored(x)) is not x")

	copied := o.DeepCopyObject().(api.Object)
	require.Equal(t, o, copied)
	require.NoError(t, api.ValidateUpdate(o, copied))
	if !slices.Contains(withoutCRD, kind.Name) {
		require.Empty(t, readCRD(t, kind).judge(asServer(t, o), asServer(t, o)), "the CRD refuses what Default made")
	}
	return once
}

// TestBad has one document for each rule. Its comments say what is expected: "# want:" lines are the exact errors, and
// "# schema:" lines what the CRD has an API server say, as field: message. With -update both are rewritten from what
// happens. A document that the CRD accepts says why, in the words of the keys of accepted.
func TestBad(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("testdata", "bad", "*.yaml"))
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml"), func(t *testing.T) {
			t.Parallel()
			var out []string
			for _, doc := range documents(t, file) {
				out = append(out, badCase(t, doc))
			}
			compare(t, file, []byte(strings.Join(out, "\n---\n")))
		})
	}
}

// badCase checks one bad document, and returns it with what happened in its comments.
func badCase(t *testing.T, doc string) string {
	t.Helper()
	var body []string
	why := ""
	for line := range strings.SplitSeq(strings.TrimRight(doc, "\n"), "\n") {
		if reason, ok := strings.CutPrefix(line, "# schema: accepts: "); ok {
			why = reason
		}
		if !strings.HasPrefix(line, "# want: ") && !strings.HasPrefix(line, "# schema: ") {
			body = append(body, line)
		}
	}
	text := strings.Join(body, "\n") + "\n"
	err := judgeGo(text)
	require.Error(t, err, text)
	var errs api.Errors
	require.ErrorAs(t, err, &errs, text)
	var comments []string
	for _, e := range errs {
		assert.NotEmpty(t, e.Field, "an error without a field: %s", e)
		assert.NotEmpty(t, e.Reason, "an error without a reason: %s", e)
		assert.NotEmpty(t, e.Fix, "an error without a fix: %s", e)
		assert.NotContains(t, e.Error(), "\n", "an error of several lines")
		comments = append(comments, "# want: "+e.Error())
	}
	said := judgeSchema(t, text)
	if len(said) == 0 {
		assert.Contains(t, accepted, why, "the CRD accepts what Validate refuses, and the document does not say why: %s", text)
		said = []string{"accepts: " + why}
	}
	for _, line := range said {
		comments = append(comments, "# schema: "+line)
	}
	title := 0
	for title < len(body) && strings.HasPrefix(body[title], "#") {
		title++
	}
	return strings.Join(slices.Insert(slices.Clone(body), title, comments...), "\n") + "\n"
}

// judgeGo is what happens to a document on its way into a datastore.
func judgeGo(text string) error {
	objects, err := api.Decode([]byte(text))
	if err != nil {
		return err
	}
	objects[0].Default()
	return objects[0].Validate()
}

// accepted are the reasons why a CRD accepts what Validate refuses. Nothing else than these may differ: what can be said in
// a schema within the API server's budget is said there.
var accepted = map[string]string{
	"the server":   "API servers refuse it for every kind, without being told: names, labels, namespaces, and unknown fields of whoever asks for that, as kubectl does",
	"a selector":   "the grammar of selectors cannot be told by CEL; what selects by one that cannot be read is closed (see closed.go)",
	"the budget":   "rules over the largest lists allowed would cost more than an API server lets a CRD have",
	"it is mended": "API servers take the namespace away from what belongs to none",
	"metadata":     "rules see nothing of the metadata but the name",
	"the system's": "only the system writes these kinds, and validates before",
}

// judgeSchema tells what a Kubernetes API server says to a document, as lines "field: message"; none if it accepts it.
func judgeSchema(t *testing.T, text string) []string {
	t.Helper()
	asJSON, err := yaml.YAMLToJSON([]byte(text))
	require.NoError(t, err)
	o := numbers(t, asJSON)
	name, _ := o["kind"].(string)
	kind, ok := api.LookupKind(name)
	switch {
	case !ok || kind.Name != name || slices.Contains(withoutCRD, kind.Name):
		return []string{"has none"}
	}
	var lines []string
	for _, e := range readCRD(t, kind).judge(o, nil) {
		line := strings.ReplaceAll(e.Field+": "+cmp.Or(e.Detail, e.Type.String()), "\n", " ")
		if !slices.Contains(lines, line) {
			lines = append(lines, line)
		}
	}
	return lines
}

// compare holds what came out against a golden file.
func compare(t *testing.T, file string, got []byte) {
	t.Helper()
	if *update {
		require.NoError(t, os.WriteFile(file, got, 0o644))
		return
	}
	want, err := os.ReadFile(file)
	require.NoError(t, err, "run the test with -update")
	require.Equal(t, string(want), string(got), fmt.Sprintf("%s differs; if that is right, run the test with -update", file))
}
