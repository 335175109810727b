package verb_test

import "testing"

func TestGet(t *testing.T) { newCluster(t).calicos().script("testdata/get.txt") }

func TestChange(t *testing.T) { newCluster(t).initialised().script("testdata/change.txt") }

func TestTrouble(t *testing.T) { newCluster(t).initialised().script("testdata/trouble.txt") }
