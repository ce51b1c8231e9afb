// Loads packages in the interpreter that is about to be saved, and tells which of them are better left to the programs: a line of JSON
// for each thing.
const WANTED = ["PACKAGES"];

/** Why it should not be part of what is saved; nothing when it may. */
async function tryImport(name) {
  const before = process.getActiveResourcesInfo().length;
  try {
    // Each keeps modules of its own.
    try {
      require(name);
    } catch (error) {
      // A package may be a module only, or have nothing at its top.
      if (error.code === 'ERR_PACKAGE_PATH_NOT_EXPORTED' || error.code === 'MODULE_NOT_FOUND') return;
      if (error.code !== 'ERR_REQUIRE_ESM' && error.code !== 'ERR_REQUIRE_ASYNC_MODULE') throw error;
    }
    await import(name);
  } catch (error) {
    return `${error.name}: ${error.message}`;
  }
  // It would go on in every clone, and a program would not end.
  if (process.getActiveResourcesInfo().length > before) return 'it starts something that does not end when it is loaded';
}

/** A package may have left its line open. */
const say = (what) => console.log('\n' + JSON.stringify(what));

(async () => {
  for (const name of WANTED) {
    say({ importing: name });
    const reason = await tryImport(name);
    if (reason) say({ unfit: { name, reason } });
  }
  say('done');
})();
