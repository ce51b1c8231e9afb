set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
greet() { local name=${1:-world}; printf 'hello %s\n' "${name^^}"; return 0; }
declare -A ages=([ann]=41 [bob]=23)
names=(one two "three four")
for name in "${!ages[@]}"; do echo "$name ${ages[$name]}"; done | sort -k2 -n
for ((i = 0; i < 3; i++)); do ((i == 1)) && continue; echo "$i ${names[i]}"; done
n=3; while [ "$n" -gt 0 ]; do n=$((n - 1)); done; until [[ $n -ge 2 ]]; do ((n += 1)); done
case $n in 1) echo one ;; [2-9]) greet there ;; *) false ;; esac
cat > data.csv <<'END'
id,name,x
1,a,1.5
2,b,2.5
3,a,3
END
cat data.csv | tail -n +2 | cut -d, -f2 | sort | uniq -c | awk '{ sum += $1 } END { print sum, NR }'
grep -n a data.csv | sed 's/a/A/g' | head -2 | tr a-z A-Z; grep -q z data.csv || echo none
awk -F, 'NR > 1 { total[$2] += $3 } END { for (k in total) printf "%s %.1f\n", k, total[k] }' data.csv
mkdir -p a/b && cp data.csv a/b/copy.csv && mv a/b/copy.csv a/c.csv && touch a/d && chmod +x a/d && ln -s a/d link
find . -type f -name '*.csv' -print0 | xargs -0 wc -l; ls -la a; du -sh . > /dev/null; df -h / > /dev/null; stat -c %s data.csv
diff data.csv a/c.csv && test -f data.csv && [ -d a ] && echo same; rm -r a link
echo "$(date +%Y) $(seq -s' ' 3) $(basename "$PWD") $(dirname /a/b) $(expr 1 + 2) $RANDOM $$" | tee out > /dev/null
echo 5 4 | { read -r a b; echo $((a * b)); }; echo "2 * 3" | bc 2> /dev/null || true; printf '%05.2f %x\n' 3.14159 255
tar czf a.tgz data.csv && tar tzf a.tgz && gzip -k out && sha256sum out | cut -c1-8; md5sum out > /dev/null; base64 out > /dev/null
echo '{"a": [1, {"b": 2}]}' | jq -c '.a[1].b'; which make > /dev/null; uname -a > /dev/null; env | wc -l; id -u; hostname
printf 'all:\n\t@echo made\n' > Makefile && make -s
(sleep 0.01; echo background) & wait; timeout 60 sleep 0.001; ps > /dev/null; kill -0 $$; command -v python3 node; type greet > /dev/null
python3 -c 'import json, sys; print(json.dumps({"a": 1}))'; echo 'print("script", 6 * 7)' > a.py && python3 a.py
# A bash that rehearses stays, so that it does not come to what it does last: open its script, and end.
echo 'echo $((6 * 7))' > script && bash script && sh script
# Where a file was put (rehearsal.rs).
rm -f /tmp/rehearsal-file
cat /nowhere 2>&1 || echo "failed with $?"
